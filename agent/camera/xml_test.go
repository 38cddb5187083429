package camera

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
)

// scanned lists the elements as path, attribute "token" and text.
func scanned(doc string) (all []string, err error) {
	err = scanXML([]byte(doc), func(e element) error {
		all = append(all, fmt.Sprintf("%s token=%s text=%s", strings.Join(e.path, "/"), e.attribute("token"), e.text()))
		return nil
	})
	return all, err
}

func TestScanXML(t *testing.T) {
	got, err := scanned("\xef\xbb\xbf" + `<?xml version="1.0"?>
<!-- a > comment with <tags> -->
<s:Envelope xmlns:s="x">
  <a:P a='1 > 0' token = "m&amp;n" other="token"> te&lt;x<!-- -->t&#33;&#x21; <b/>not this</a:P>
  <P not-token="1"/><P atoken="2" token=''></P >
</s:Envelope>
`)
	want := []string{
		"Envelope/P/b token= text=",
		"Envelope/P token=m&n text=te<xt!!",
		"Envelope/P token= text=",
		"Envelope/P token= text=",
		"Envelope token= text=",
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v\n%q, want\n%q", err, got, want)
	}
	if deep := strings.Repeat("<a>", 33) + strings.Repeat("</a>", 33); scanXML([]byte(deep), func(element) error { return nil }) == nil {
		t.Error("no limit to the depth")
	}
	for _, text := range []string{"&b;", "&amp", "&#x110000000;", "\xff"} {
		if got, err := scanned("<a>" + text + "</a>"); err != nil || !slices.Equal(got, []string{"a token= text="}) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	stop := errors.New("stop")
	if err := scanXML([]byte("<a><b/></a>"), func(element) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("err = %v", err)
	}
}

func TestScanXMLRefuses(t *testing.T) {
	for _, doc := range []string{
		"", " ", "text", "<", "<a", "<a>", "</a>", "<a></b>", "<a/><b/>", "<a></a>text", "<>", "< a/>", "</>",
		`<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>`, "<a><![CDATA[x]]></a>", "<a><?x</a>", "<a><!-- </a>", `<a b="c></a>`, "<a <b/>/>",
	} {
		if got, err := scanned(doc); err == nil {
			t.Errorf("%q: %q", doc, got)
		}
	}
}

// FuzzScanXML: no document makes it fall over, and what the standard library
// reads of one that both take is the same.
func FuzzScanXML(f *testing.F) {
	for _, doc := range []string{
		`<a x="1"><b:c d='&lt;'>t&#65;</b:c><d/></a>`, `<?xml version="1.0"?><!-- c --><a> b </a>`, `<a><b></a></b>`,
	} {
		f.Add(doc)
	}
	f.Fuzz(func(t *testing.T, doc string) {
		var got []string
		err := scanXML([]byte(doc), func(e element) error {
			if len(e.path) == 0 || len(e.path) > maxDepth {
				t.Fatalf("path is %q", e.path)
			}
			e.attribute("token")
			e.text()
			got = append(got, e.name())
			return nil
		})
		if err != nil {
			return
		}
		var want []string
		for d := xml.NewDecoder(strings.NewReader(doc)); ; {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return // it is stricter with names
			}
			if end, ok := token.(xml.EndElement); ok {
				want = append(want, end.Name.Local)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("elements %q, want %q", got, want)
		}
	})
}
