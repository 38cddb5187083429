package lan

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/zipato/vms/pkg/wire"
)

// Overview is the hub with its streams: what "vms-agent status" shows.
type Overview struct {
	Status  Status   `json:"status"`
	Streams []Stream `json:"streams"`
}

// Print writes the overview for people.
func (o *Overview) Print(w io.Writer) error {
	s := &o.Status
	var b strings.Builder
	row := func(name string, parts ...string) {
		var said []string
		for _, p := range parts {
			if p != "" {
				said = append(said, p)
			}
		}
		fmt.Fprintf(&b, "%-8s%s\n", name, strings.Join(said, ", "))
	}
	row("hub", string(s.Hub), "vms-agent "+s.Version, "up "+span(time.Duration(s.Uptime*float64(time.Second))))
	row("time", s.Time.UTC().Format("2006-01-02 15:04:05 UTC"), s.clock())
	row("cloud", link(s.Control, s.ControlProblem))
	switch s.MQTT {
	case "none":
		row("MQTT", "the cloud has named no broker; its own line does it alone")
	default:
		row("MQTT", link(s.MQTT, s.MQTTProblem))
	}
	if d := s.Desired; d != nil {
		row("wanted", fmt.Sprintf("revision %d", d.Revision), progress(wire.SyncState(d.State)), d.Problem)
	} else {
		row("wanted", "nothing: the cloud has not said yet what this hub is to do")
	}
	pressure := ""
	if s.RAM.Pressure {
		pressure = "nearly full: workers are asked to store what they have"
	}
	row("memory", fmt.Sprintf("%s of %s used for footage", size(s.RAM.Used), size(s.RAM.Limit)), pressure)
	if f := s.Flash; f != nil {
		row("flash", fmt.Sprintf("%s of %s used for footage", size(f.Used), size(f.Limit)), size(f.WrittenToday)+" written today. "+f.Life)
		if f.Problem != "" {
			row("", "! "+f.Problem)
		}
	} else {
		row("flash", "not used")
	}
	row("uplink", s.Uplink.words(), size(s.Uplink.Sent)+" sent")
	if len(o.Streams) == 0 {
		row("streams", "none")
	}
	for i := range o.Streams {
		o.Streams[i].print(&b, s.Time)
	}
	s.Desired.printIdle(&b, o.Streams)
	_, err := io.WriteString(w, b.String())
	return err
}

// print writes a stream of two to three lines.
func (s *Stream) print(b *strings.Builder, now time.Time) {
	fmt.Fprintf(b, "\n%s", s.Channel)
	if s.Camera != "" {
		fmt.Fprintf(b, "  camera %s", s.Camera)
	}
	state := stateWords[s.State]
	switch {
	case s.Delivering:
		state = "stopped; what is held is being brought"
	case s.Recording:
		state += ", recording"
	case s.Mode == string(wire.ModeEvent):
		state += ", waiting for an event"
	}
	fmt.Fprintf(b, "\n  %s  (%s%s, since %s)\n", cmp.Or(strings.TrimPrefix(state, ", "), s.State), asker[s.Origin], mode(s.Mode), s.Since.UTC().Format("2006-01-02 15:04:05"))
	if s.Problem != "" {
		fmt.Fprintf(b, "  ! %s\n", s.Problem)
	}
	fmt.Fprintf(b, "  captured %s, stored %s; holds %s", ago(now, s.CapturedUntil), ago(now, s.DurableUntil), size(s.HeldBytes))
	if s.FlashBytes > 0 {
		fmt.Fprintf(b, " (%s on flash, since %s)", size(s.FlashBytes), s.HeldFrom.UTC().Format("2006-01-02 15:04:05"))
	}
	if s.DroppedChunks > 0 {
		fmt.Fprintf(b, "; %d chunks had no room", s.DroppedChunks)
	}
	if s.PacketsLost > 0 || s.CameraAbsence >= 1 {
		fmt.Fprintf(b, "\n  of the camera %d packets were lost on the way, and %s without a picture", s.PacketsLost, span(time.Duration(s.CameraAbsence*float64(time.Second))))
	}
	b.WriteString("\n")
}

// printIdle writes what is wanted and has no stream now.
func (d *Desired) printIdle(b *strings.Builder, streams []Stream) {
	if d == nil {
		return
	}
	shown := make(map[string]bool)
	for _, s := range streams {
		shown[string(s.Channel)] = true
	}
	for _, it := range d.Items {
		if shown[string(it.Channel)] {
			continue
		}
		fmt.Fprintf(b, "\n%s\n  not pulled now, %s  (%s%s)\n", it.Channel, progress(it.State), asker[it.Origin], mode(string(it.Mode)))
		if it.Problem != "" {
			fmt.Fprintf(b, "  ! %s\n", it.Problem)
		}
	}
}

var stateWords = map[string]string{
	wire.StateStarting: "starting", wire.StateStreaming: "streaming", wire.StateBuffering: "streaming into the buffer, no worker takes it",
	wire.StateNoCamera: "no camera", wire.StateBadCamera: "not a usable camera", wire.StateAuthFailed: "the camera refuses the password",
	wire.StateRefused: "refused by the cloud", wire.StateStopped: "stopped",
}

var asker = map[string]string{"cloud": "for the cloud", "lan": "for an app on the LAN", "spool": "left by an earlier run"}

func mode(m string) string {
	if m == "" {
		return ""
	}
	return ", " + strings.ReplaceAll(m, "_", " ")
}

func progress(s wire.SyncState) string {
	switch s {
	case wire.InSync:
		return "as wanted"
	case wire.Failed:
		return "cannot be done as wanted"
	}
	return "being done"
}

func link(state, why string) string {
	if why == "" {
		return state
	}
	return state + ": " + why
}

func (s *Status) clock() string {
	switch {
	case s.TimeError != nil:
		return fmt.Sprintf("right to within %d ms, says %s", *s.TimeError, strings.ToUpper(s.TimeSource))
	case s.TimeUncertain:
		return "but nobody has told the hub what time it is"
	}
	return ""
}

func (u *Uplink) words() string {
	measured, limit := "not measured yet", "no limit"
	if u.Measured > 0 {
		measured = rate(u.Measured) + " measured"
	}
	if u.Limit > 0 {
		limit = "limited to " + rate(u.Limit)
	}
	return measured + ", " + limit
}

func rate(bps int64) string { return fmt.Sprintf("%.1f Mbit/s", float64(bps)/1e6) }

// size is bytes for people.
func size(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}

// ago says how long before now a point was up to which something is done.
func ago(now, t time.Time) string {
	if t.IsZero() {
		return "nothing yet"
	}
	if d := now.Sub(t); d > time.Second {
		return "up to " + span(d) + " ago"
	}
	return "up to now"
}

// span is a duration for people: two units, no more.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "0 s"
	case d < time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%d d %d h", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}
