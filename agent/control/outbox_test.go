package control

import (
	"fmt"
	"slices"
	"testing"
)

// ids are the commands whose replies wait.
func (o *outbox) ids() (ids []string) {
	for _, r := range o.replies {
		ids = append(ids, r.reply)
	}
	return ids
}

func TestOutboxTakesTurns(t *testing.T) {
	o := outbox{ring: make(chan struct{}, 1)}
	if m := o.next(); m != nil {
		t.Fatalf("an empty outbox has %+v", m)
	}
	o.addReply("c1", []byte("1"))
	o.addReply("c2", []byte("2"))
	o.setReport([]byte("r"))
	var got []string
	for m := o.next(); m != nil; m = o.next() {
		got = append(got, m.reply)
		if len(got) < 3 {
			o.setReport([]byte("newer")) // all the time
		}
		o.done(m)
		if len(got) > 10 {
			break
		}
	}
	if i, j := slices.Index(got, "c1"), slices.Index(got, "c2"); i < 0 || j != i+2 || i > 1 {
		t.Errorf("published %q, want reports and replies by turns", got)
	}
}

func TestOutboxKeepsWhatIsNotAcknowledged(t *testing.T) {
	o := outbox{ring: make(chan struct{}, 1)}
	o.setReport([]byte("old"))
	sent := o.next()
	o.setReport([]byte("new")) // while the old one is under way
	o.done(sent)
	if m := o.next(); m == nil || string(m.payload) != "new" {
		t.Fatalf("next is %+v, want the new report", m)
	}
	o.done(o.next())
	o.again()
	if m := o.next(); m == nil || string(m.payload) != "new" {
		t.Fatalf("next is %+v, want the report again", m)
	}
	o.done(o.next())

	o.addReply("c1", []byte("first"))
	sent = o.next()
	o.addReply("c1", []byte("second"))
	if got := o.ids(); !slices.Equal(got, []string{"c1"}) {
		t.Errorf("two replies to one command wait: %v", got)
	}
	o.done(sent)
	if m := o.next(); m == nil || string(m.payload) != "second" {
		t.Fatalf("next is %+v, want the second reply", m)
	}
}

func TestOutboxIsBounded(t *testing.T) {
	o := outbox{ring: make(chan struct{}, 1)}
	for i := range maxReplies {
		if dropped := o.addReply(fmt.Sprint(i), []byte("x")); dropped != nil {
			t.Fatalf("reply %d drops %v", i, dropped)
		}
	}
	if dropped := o.addReply("more", []byte("x")); !slices.Equal(dropped, []string{"0"}) {
		t.Errorf("one too many drops %v, want the oldest", dropped)
	}
	if dropped := o.addReply("long", make([]byte, maxReplyBytes-4)); len(dropped) != maxReplies-4 {
		t.Errorf("a long one drops %d, want %d", len(dropped), maxReplies-4)
	}
	if got, want := o.ids(), []string{"61", "62", "63", "more", "long"}; !slices.Equal(got, want) {
		t.Errorf("left are %v, want %v", got, want)
	}
	bytes := 0
	for _, r := range o.replies {
		bytes += len(r.payload)
	}
	if bytes != o.bytes || bytes > maxReplyBytes {
		t.Errorf("%d bytes, counted as %d", bytes, o.bytes)
	}
}
