package objstore_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/pkg/vms"
)

func TestCheckKey(t *testing.T) {
	for _, key := range []string{"a", "recordings/c/2026-01-02/03-04-05.000006Z.7.mp4", "a/.b", strings.Repeat("a/", 500) + "a"} {
		if err := objstore.CheckKey(key); err != nil {
			t.Errorf("CheckKey(%.40q) = %v", key, err)
		}
	}
	for _, key := range []string{
		"", "/a", "a/", "a//b", "../a", "a/../b", "a/.", ".hidden", "a b", "a\x00", "ä", "a%2fb", "a?b", `a\b`,
		strings.Repeat("a/", 512) + "a", strings.Repeat("a", 201),
	} {
		if err := objstore.CheckKey(key); !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("CheckKey(%.40q) = %v, want vms.ErrInvalid", key, err)
		}
	}
}

func TestPutInputCheck(t *testing.T) {
	good := func() objstore.PutInput {
		return objstore.PutInput{Body: bytes.NewReader(nil), ContentType: "video/mp4", Metadata: map[string]string{"a-1": "x y"}}
	}
	if err := good().Check(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*objstore.PutInput){
		"no body":         func(in *objstore.PutInput) { in.Body = nil },
		"negative":        func(in *objstore.PutInput) { in.Size = -1 },
		"too large":       func(in *objstore.PutInput) { in.Size = objstore.MaxPut + 1 },
		"no type":         func(in *objstore.PutInput) { in.ContentType = "" },
		"type with break": func(in *objstore.PutInput) { in.ContentType = "video/mp4\r\nX-Amz-Acl: public" },
		"upper case":      func(in *objstore.PutInput) { in.Metadata = map[string]string{"A": "x"} },
		"reserved key":    func(in *objstore.PutInput) { in.Metadata = map[string]string{objstore.MetaSHA256: "x"} },
		"empty key":       func(in *objstore.PutInput) { in.Metadata = map[string]string{"": "x"} },
		"empty value":     func(in *objstore.PutInput) { in.Metadata = map[string]string{"a": ""} },
		"outer space":     func(in *objstore.PutInput) { in.Metadata = map[string]string{"a": " x"} },
		"line break":      func(in *objstore.PutInput) { in.Metadata = map[string]string{"a": "x\ny"} },
		"beyond ASCII":    func(in *objstore.PutInput) { in.Metadata = map[string]string{"a": "é"} },
		"too much":        func(in *objstore.PutInput) { in.Metadata = map[string]string{"a": strings.Repeat("x", 2048)} },
	} {
		in := good()
		spoil(&in)
		if err := in.Check(); !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("%s: Check = %v, want vms.ErrInvalid", name, err)
		}
	}
}

func TestCheckPresign(t *testing.T) {
	for expiry, ok := range map[time.Duration]bool{
		0: false, -time.Hour: false, time.Millisecond: false, time.Second: true,
		7 * 24 * time.Hour: true, 7*24*time.Hour + 1: false,
	} {
		if err := objstore.CheckPresign(expiry); (err == nil) != ok {
			t.Errorf("CheckPresign(%v) = %v", expiry, err)
		}
	}
}
