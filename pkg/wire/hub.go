package wire

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// Limits of the hub protocol's fields beside those in wire.go.
const (
	maxURL      = 2000
	maxUpload   = 8000 // a presigned URL carries its credentials
	maxProblem  = 1000
	maxSchedule = 1000
	maxPreRoll  = 60
	maxPostRoll = 600
)

func (*Desired) session()      {}
func (*Reported) session()     {}
func (*Command) session()      {}
func (*CommandReply) session() {}
func (*Broker) session()       {}

func (*Desired) kind() string      { return "desired" }
func (*Reported) kind() string     { return "reported" }
func (*Command) kind() string      { return "command" }
func (*CommandReply) kind() string { return "command_reply" }
func (*Broker) kind() string       { return "broker" }

// validate checks the form. What modes, schedules and cameras mean is checked
// stream by stream where they are obeyed: one that a hub cannot obey must not
// keep it from the others.
func (m *Desired) validate() error {
	switch {
	case !vms.ValidID(m.Hub):
		return malformed("hub %.40q is no id", m.Hub)
	case m.Revision < 1:
		return malformed("revision %d", m.Revision)
	case !validTime(m.Issued) || m.Issued.IsZero():
		return malformed("issued at no time")
	case !validZone(m.TimeZone):
		return malformed("time zone %.70q", m.TimeZone)
	case len(m.Limits.Uplink) > maxSchedule:
		return malformed("limits of %d bytes", len(m.Limits.Uplink))
	case len(m.Streams) > MaxStreams:
		return malformed("%d streams, more than %d", len(m.Streams), MaxStreams)
	}
	seen := make(map[vms.ChannelID]bool, len(m.Streams))
	for i := range m.Streams {
		s := &m.Streams[i]
		if err := s.validate(); err != nil {
			return err
		}
		if s.Stopped < 0 || s.Stopped > m.Revision {
			return malformed("channel %s: stopped with revision %d, in revision %d", s.Channel, s.Stopped, m.Revision)
		}
		if seen[s.Channel] {
			return malformed("channel %s is there twice", s.Channel)
		}
		seen[s.Channel] = true
	}
	return nil
}

func (s *DesiredStream) validate() error {
	switch {
	case !vms.ValidID(s.Channel):
		return malformed("channel %.40q is no id", s.Channel)
	case (s.SID != "" || s.Active) && !vms.ValidID(s.SID):
		return malformed("channel %s: sid %.40q is no id", s.Channel, s.SID)
	case s.NVRURL == "" || len(s.NVRURL) > maxURL:
		return malformed("channel %s: nvr_url missing or too long", s.Channel)
	case !validWord(s.Mode):
		return malformed("channel %s: mode %.40q is no word", s.Channel, s.Mode)
	case !validTime(s.Until):
		return malformed("channel %s: until is no time", s.Channel)
	case len(s.Schedule) > maxSchedule:
		return malformed("channel %s: schedule of %d bytes", s.Channel, len(s.Schedule))
	case s.PreRoll < 0 || s.PreRoll > maxPreRoll || s.PostRoll < 0 || s.PostRoll > maxPostRoll:
		return malformed("channel %s: %d s before and %d s after an event, at most %d and %d", s.Channel, s.PreRoll, s.PostRoll, maxPreRoll, maxPostRoll)
	case len(s.Camera) == 0 || len(s.Camera) > MaxCamera:
		return malformed("channel %s: camera of %d bytes, want 1 to %d", s.Channel, len(s.Camera), MaxCamera)
	}
	return nil
}

func (m *Reported) validate() error {
	switch {
	case !vms.ValidID(m.Hub):
		return malformed("hub %.40q is no id", m.Hub)
	case m.Boot == "" || len(m.Boot) > 64 || len(m.Agent) > 200:
		return malformed("boot missing, or boot or agent too long")
	case m.Serial < 0 || m.Online && m.Serial == 0:
		return malformed("serial %d", m.Serial)
	case m.Revision < 0:
		return malformed("revision %d", m.Revision)
	case !validTime(m.At):
		return malformed("at is no time")
	case m.State != "" && !validState(m.State):
		return malformed("state %.40q is no word", m.State)
	case len(m.Problem) > maxProblem:
		return malformed("problem of %d bytes", len(m.Problem))
	case len(m.Streams) > MaxItems:
		return malformed("%d items, more than %d", len(m.Streams), MaxItems)
	}
	if c := m.Clock; c != nil && !validWord(c.Source) {
		return malformed("clock source %.40q is no word", c.Source)
	}
	seen := make(map[vms.ChannelID]bool, len(m.Streams))
	for i := range m.Streams {
		s := &m.Streams[i]
		if err := s.validate(); err != nil {
			return err
		}
		if seen[s.Channel] {
			return malformed("channel %s is there twice", s.Channel)
		}
		seen[s.Channel] = true
	}
	return nil
}

func (s *ReportedItem) validate() error {
	switch {
	case !vms.ValidID(s.Channel):
		return malformed("channel %.40q is no id", s.Channel)
	case s.SID != "" && !vms.ValidID(s.SID):
		return malformed("channel %s: sid %.40q is no id", s.Channel, s.SID)
	case !validWord(s.Origin) || !validWord(s.Mode) || !validState(s.State):
		return malformed("channel %s: origin, mode or state is no word", s.Channel)
	case s.Stream != "" && !validWord(s.Stream):
		return malformed("channel %s: stream %.40q is no word", s.Channel, s.Stream)
	case len(s.Problem) > maxProblem:
		return malformed("channel %s: problem of %d bytes", s.Channel, len(s.Problem))
	}
	return nil
}

func (m *Command) validate() error {
	switch {
	case !vms.ValidID(m.ID):
		return malformed("id %.40q", m.ID)
	case !validTime(m.Deadline) || m.Deadline.IsZero():
		return malformed("no deadline")
	case !validWord(m.Kind):
		return malformed("kind %.40q is no word", m.Kind)
	case m.Channel != "" && !vms.ValidID(m.Channel):
		return malformed("channel %.40q is no id", m.Channel)
	case m.Channel == "" && (m.Kind == CommandSnapshot || m.Kind == CommandRestartStream):
		return malformed("%s of which channel", m.Kind)
	case len(m.UploadURL) > maxUpload || m.UploadURL == "" && m.Kind == CommandSnapshot:
		return malformed("upload_url missing or too long")
	case m.PreRoll != nil && (*m.PreRoll < 0 || *m.PreRoll > maxPreRoll):
		return malformed("%d s before an event, want 0 to %d", *m.PreRoll, maxPreRoll)
	case m.PostRoll != nil && (*m.PostRoll < 0 || *m.PostRoll > maxPostRoll):
		return malformed("%d s after an event, want 0 to %d", *m.PostRoll, maxPostRoll)
	}
	return nil
}

func (m *CommandReply) validate() error {
	switch {
	case !vms.ValidID(m.ID):
		return malformed("id %.40q", m.ID)
	case len(m.Problem) > maxProblem:
		return malformed("problem of %d bytes", len(m.Problem))
	case len(m.Result) > MaxResult:
		return malformed("result of %d bytes, more than %d", len(m.Result), MaxResult)
	case len(m.Result) > 0 && !json.Valid(m.Result):
		return malformed("result is no JSON")
	}
	return nil
}

func (m *Broker) validate() error {
	switch {
	case len(m.URL) > maxURL || len(m.Password) > 256:
		return malformed("url or password too long")
	case m.Username != "" && !vms.ValidID(m.Username):
		return malformed("username %.40q is no id", m.Username)
	}
	return nil
}

// validWord allows the words of today and those that a newer peer may have.
func validWord[T ~string](w T) bool { return len(w) <= 32 && vms.ValidID(w) }

// validState is validWord for the states, which are in capitals.
func validState(s SyncState) bool {
	for _, c := range []byte(s) {
		if (c < 'A' || c > 'Z') && c != '_' {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= 32
}

// validZone allows what names of the IANA database are made of. Whether there is
// such a zone, the receiver's database says, which may be older.
func validZone(name string) bool {
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("/_+-", rune(c)) {
			return false
		}
	}
	return len(name) <= 64
}

// validTime reports whether t can be said in RFC 3339, also in UTC.
func validTime(t time.Time) bool {
	there, utc := t.Year(), t.UTC().Year()
	return min(there, utc) >= 0 && max(there, utc) <= 9999
}
