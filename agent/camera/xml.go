package camera

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds how deep elements may nest; SOAP with ONVIF needs ten or so.
const maxDepth = 32

// element is one element of a document, seen at its end.
type element struct {
	path       []string // names from the root to this one, without their prefixes
	attributes string   // as they stand in the start tag
	inner      []byte   // what stands before the first element inside
}

func (e element) name() string { return e.path[len(e.path)-1] }

// inside reports whether an element above this one has that name.
func (e element) inside(name string) bool {
	for _, n := range e.path[:len(e.path)-1] {
		if n == name {
			return true
		}
	}
	return false
}

// text returns what stands before the first element inside, without space around
// it, "" where that makes no sense: a camera whose name for a profile is of
// another character set is understood all the same.
func (e element) text() string {
	text, err := unescapeXML(strings.Trim(string(e.inner), space))
	if err != nil {
		return ""
	}
	return text
}

// attribute returns "" where there is none.
func (e element) attribute(name string) string {
	for rest := e.attributes; ; {
		key, after, found := strings.Cut(rest, "=")
		after = strings.TrimLeft(after, space)
		if !found || after == "" {
			return ""
		}
		value, more, closed := strings.Cut(after[1:], after[:1])
		if !closed || after[0] != '"' && after[0] != '\'' {
			return ""
		}
		if strings.Trim(key, space) == name {
			text, err := unescapeXML(value)
			if err != nil {
				return ""
			}
			return text
		}
		rest = more
	}
}

const space = " \t\r\n"

var errXML = errors.New("not well-formed XML")

// scanXML calls visit at the end of each element, the inner ones first. It is
// a small part of XML: no document types and no entities but the five that need
// none, so that no document is larger than it looks. Namespaces are not resolved;
// names are those behind the prefix. encoding/xml would do it, and cost the hub's
// binary some hundred kilobytes.
func scanXML(doc []byte, visit func(element) error) error {
	type open struct {
		name, attributes string
		inner            []byte
		child            bool // text behind the first one inside does not count
	}
	var stack []open
	var path []string
	root := false
	doc = bytes.TrimPrefix(doc, []byte("\xef\xbb\xbf"))
	end := func() error {
		e := stack[len(stack)-1]
		if err := visit(element{path: path, attributes: e.attributes, inner: e.inner}); err != nil {
			return err
		}
		stack, path = stack[:len(stack)-1], path[:len(path)-1]
		return nil
	}
	for len(doc) > 0 {
		text, rest, tag := bytes.Cut(doc, []byte("<"))
		if len(stack) > 0 {
			if top := &stack[len(stack)-1]; !top.child {
				top.inner = append(top.inner, text...)
			}
		} else if len(bytes.Trim(text, space)) > 0 {
			return errXML
		}
		if !tag {
			break
		}
		switch {
		case bytes.HasPrefix(rest, []byte("?")):
			if _, doc, tag = bytes.Cut(rest, []byte("?>")); !tag {
				return errXML
			}
			continue
		case bytes.HasPrefix(rest, []byte("!--")):
			if _, doc, tag = bytes.Cut(rest[3:], []byte("-->")); !tag {
				return errXML
			}
			continue
		case bytes.HasPrefix(rest, []byte("!")):
			return errXML // a document type, or CDATA, which no camera needs
		}
		head, after, err := cutTag(rest)
		if err != nil {
			return err
		}
		doc = after
		if name, closing := strings.CutPrefix(head, "/"); closing {
			if len(stack) == 0 || strings.TrimRight(name, space) != stack[len(stack)-1].name {
				return errXML
			}
			if err := end(); err != nil {
				return err
			}
			continue
		}
		head, empty := strings.CutSuffix(head, "/")
		name, attributes := head, ""
		if i := strings.IndexAny(head, space); i >= 0 {
			name, attributes = head[:i], head[i:]
		}
		if name == "" || len(stack) == maxDepth || len(stack) == 0 && root {
			return errXML
		}
		root = true
		if len(stack) > 0 {
			stack[len(stack)-1].child = true
		}
		stack = append(stack, open{name: name, attributes: attributes})
		path = append(path, name[strings.IndexByte(name, ':')+1:])
		if empty {
			if err := end(); err != nil {
				return err
			}
		}
	}
	if len(stack) > 0 || !root {
		return errXML
	}
	return nil
}

// cutTag returns what stands before the tag's end; a ">" may also stand in an
// attribute.
func cutTag(b []byte) (head string, rest []byte, err error) {
	quote := byte(0)
	for i, c := range b {
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case c == '<':
			return "", nil, errXML
		case c == '>':
			return string(b[:i]), b[i+1:], nil
		}
	}
	return "", nil, errXML
}

var entities = map[string]string{"amp": "&", "lt": "<", "gt": ">", "quot": `"`, "apos": "'"}

func unescapeXML(s string) (string, error) {
	if !utf8.ValidString(s) {
		return "", errXML
	}
	var b strings.Builder
	for {
		text, rest, found := strings.Cut(s, "&")
		b.WriteString(text)
		if !found {
			return b.String(), nil
		}
		name, after, closed := strings.Cut(rest, ";")
		if !closed {
			return "", errXML
		}
		char, known := entities[name]
		if number, ok := strings.CutPrefix(name, "#"); ok {
			base := 10
			if hex, ok := strings.CutPrefix(number, "x"); ok {
				number, base = hex, 16
			}
			n, err := strconv.ParseUint(number, base, 21)
			char, known = string(rune(n)), err == nil
		}
		if !known {
			return "", errXML
		}
		b.WriteString(char)
		s = after
	}
}

var escaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

func escapeXML(s string) string { return escaper.Replace(s) }
