package reconcile

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/week"
	"github.com/zipato/vms/pkg/wire"
)

// The documents on flash.
const (
	docDesired = "desired" // wire.Desired as it came, its secrets sealed
	docLocal   = "local"   // what runs for somebody on the LAN
)

// Desired takes a document of the cloud. It is on flash before it is obeyed.
// ErrOld: another one is newer, or it is that one. vms.ErrForbidden: it is for
// another hub.
func (r *Reconciler) Desired(m *wire.Desired) error {
	r.storeMu.Lock()
	defer r.storeMu.Unlock()
	r.mu.Lock()
	known := r.doc.revision()
	r.mu.Unlock()
	if m.Hub != r.cfg.Hub {
		err := fmt.Errorf("%w: the desired document is for hub %q", vms.ErrForbidden, m.Hub)
		r.setRefused(sentence(err))
		return err
	}
	if m.Revision <= known {
		return fmt.Errorf("desired revision %d: %w (%d)", m.Revision, ErrOld, known)
	}
	doc := r.read(m)
	data, err := wire.EncodeSession(m)
	if err == nil {
		err = r.cfg.Store.PutDocument(docDesired, data)
	}
	if err != nil { // a hub with worn out flash records all the same
		r.cfg.Log.Error("cannot keep what the cloud wants; after a restart it has to be asked again", "revision", m.Revision, "err", err)
	}
	r.mu.Lock()
	r.doc, r.refused = doc, ""
	r.mu.Unlock()
	r.cfg.OnLimits(doc.limits())
	r.cfg.Log.Info("desired document", "revision", m.Revision, "streams", len(m.Streams))
	r.Kick()
	return nil
}

// limits are what OnLimits is told.
func (d *document) limits() (wire.HubLimits, *time.Location) {
	if d.TimeZone == "" {
		return d.Limits, nil
	}
	return d.Limits, d.zone
}

func (r *Reconciler) setRefused(why string) {
	r.mu.Lock()
	r.refused = why
	r.mu.Unlock()
	r.Kick()
}

// read opens a document. What is wrong with one stream is no reason to keep the
// others waiting.
func (r *Reconciler) read(m *wire.Desired) *document {
	doc := &document{Desired: *m, streams: make(map[vms.ChannelID]*declared, len(m.Streams))}
	zone, zoneErr := time.LoadLocation(m.TimeZone)
	if zoneErr != nil {
		zone = time.UTC
	}
	doc.zone = zone
	for _, s := range m.Streams {
		d := &declared{DesiredStream: s}
		doc.streams[s.Channel] = d
		if err := r.open(d); err != nil {
			r.cfg.Log.Error("a camera of the desired document cannot be read", "channel", s.Channel, "err", err)
			d.unreadable = "The camera's fields cannot be read: " + sentence(err)
		}
		if s.Mode != wire.ModeScheduled {
			continue
		}
		const always = " It records all the time until that is mended."
		var err error
		if d.week, err = week.Parse(s.Schedule); err != nil {
			d.unplanned = "The schedule cannot be read: " + sentence(err) + "." + always
		} else if zoneErr != nil {
			d.unplanned = fmt.Sprintf("The time zone %q is unknown.", m.TimeZone) + always
		}
	}
	return doc
}

// open unseals the camera of d.
func (r *Reconciler) open(d *declared) error {
	data, err := r.cfg.Open("camera/"+string(d.Channel), d.Camera)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &d.camera); err != nil {
		return errors.New("what is sealed is no camera") // err may repeat what is secret
	}
	return nil
}

// load reads what is kept. What cannot be read is as if it were not there: the
// cloud says its part again.
func (r *Reconciler) load() {
	data, err := r.cfg.Store.Document(docDesired)
	if err == nil && data != nil {
		err = r.loadDesired(data)
	}
	if err != nil {
		r.cfg.Log.Error("what the cloud wanted cannot be read", "err", err)
	}
	data, err = r.cfg.Store.Document(docLocal)
	if err == nil && data != nil {
		err = r.loadLocal(data)
	}
	if err != nil {
		r.cfg.Log.Error("what was asked for on the LAN cannot be read", "err", err)
	}
}

func (r *Reconciler) loadDesired(data []byte) error {
	m, err := wire.DecodeSession(data)
	if err != nil {
		return err
	}
	d, ok := m.(*wire.Desired)
	if !ok || d.Hub != r.cfg.Hub { // the hub was enrolled anew
		return fmt.Errorf("%w: the document is not this hub's", vms.ErrForbidden)
	}
	r.doc = r.read(d)
	r.cfg.OnLimits(r.doc.limits())
	return nil
}
