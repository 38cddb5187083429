package reconcile

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/zipato/vms/pkg/vms"
)

// Local is a stream that somebody on the LAN asks for, with a token of the cloud.
type Local struct {
	Channel vms.ChannelID `json:"channel"`
	SID     vms.SID       `json:"sid"`
	NVRURL  string        `json:"nvr_url"`
	Token   string        `json:"token,omitempty"`
	// Camera, when nothing of it is given, is the one that the cloud stored.
	Camera vms.Camera `json:"camera"`
}

// request is a Local that counts, until somebody stops it.
type request struct {
	Local
	// Borrows: the camera, or its password, is the one that the cloud stored, as it
	// is at the time. Else it is as it was given, whatever the cloud stores later.
	Borrows bool `json:"borrows,omitempty"`
	// Known is the revision of the desired document that counted when it was made;
	// 0: none. A stop in the cloud of a later one ends it.
	Known int64 `json:"known,omitempty"`

	result chan error // cap 1; nil: nobody waits
}

// camera is the one that a request means at the time.
func (l *request) camera(doc *document, address func(vms.Camera) (string, error)) (vms.Camera, error) {
	if !l.Borrows {
		return l.Camera, nil
	}
	cam, _, err := complete(l.Camera, doc.stream(l.Channel), address)
	return cam, err
}

// tell says how it went, to the first who waits for it.
func (l *request) tell(err error) {
	if l == nil {
		return
	}
	select {
	case l.result <- err:
	default: // it was said, or nobody waits
	}
}

// Start has a stream run until it is stopped, also after a restart of the agent,
// and waits until it was started. A request that failed is forgotten. Errors are
// the Runner's, or
//
//	vms.ErrConflict     the cloud runs the channel, or starts or stops it meanwhile
//	vms.ErrForbidden    the stored password would go to another address
//	vms.ErrInvalid      there is no camera, or its address is none
//	vms.ErrUnavailable  the agent is stopping
func (r *Reconciler) Start(l Local) error {
	req := &request{Local: l, result: make(chan error, 1)}
	r.mu.Lock()
	err := r.admit(req)
	var old *request
	if err == nil {
		old = r.locals[l.Channel]
		r.locals[l.Channel] = req
	}
	r.mu.Unlock()
	if err != nil {
		if errors.Is(err, errRuns) {
			return nil
		}
		return err
	}
	old.tell(fmt.Errorf("%w: the channel was just started by somebody else", vms.ErrConflict))
	r.Kick()
	select {
	case err = <-req.result:
	case <-r.over:
		err = errOver
	}
	if err != nil {
		r.restore(req, old)
		return err
	}
	r.keepLocal()
	return nil
}

// errRuns: the cloud runs just that.
var errRuns = errors.New("it runs")

// admit applies the rules of the LAN to a request. r.mu is held.
func (r *Reconciler) admit(req *request) error {
	stored := r.doc.stream(req.Channel)
	cam, borrows, err := complete(req.Camera, stored, r.cfg.Address)
	req.Borrows, req.Known = borrows, r.doc.revision()
	if err != nil || stored == nil {
		return err
	}
	now, certain := r.cfg.Now()
	w, _ := stored.decide(now, certain, r.doc.zone)
	switch {
	case w.target == nil:
		return nil
	case w.target.SID == req.SID && sameCamera(w.target.Camera, cam):
		return errRuns
	}
	return fmt.Errorf("%w: the cloud runs the stream of this channel; stop it there first", vms.ErrConflict)
}

// complete fills in what a request leaves out of its camera, from the one that
// the cloud stored, and reports whether it did. A stored password goes to the
// stored address only.
func complete(asked vms.Camera, stored *declared, address func(vms.Camera) (string, error)) (cam vms.Camera, borrows bool, err error) {
	known := stored != nil && stored.unreadable == ""
	if asked.URL == "" && asked.Host == "" {
		switch {
		case asked.Port != 0 || asked.Username != "" || asked.Password != "" || len(asked.Templates) > 0:
			return asked, false, fmt.Errorf("%w: camera: neither url nor host is given", vms.ErrInvalid)
		case !known:
			return asked, false, fmt.Errorf("%w: no camera is given, and none is stored for this channel", vms.ErrInvalid)
		}
		return stored.camera, true, nil
	}
	if _, err := address(asked); err != nil || !known || hasPassword(asked) || !hasPassword(stored.camera) {
		return asked, false, err
	}
	// Of the caller's templates only the one that the address is taken from: the
	// others could carry the password elsewhere.
	templates := maps.Clone(stored.camera.Templates)
	if high := asked.Templates["high"]; high != "" {
		if templates == nil {
			templates = make(map[string]string)
		}
		templates["high"] = high
	}
	asked.Templates = templates
	if asked.Port == 0 {
		asked.Port = stored.camera.Port
	}
	here, err1 := address(asked)
	there, err2 := address(stored.camera)
	if err1 != nil || err2 != nil || !strings.EqualFold(here, there) {
		return asked, false, fmt.Errorf("%w: the password that is stored for this channel goes to its own camera only; give the one of this camera", vms.ErrForbidden)
	}
	user, password := credentials(stored.camera)
	if name, _ := credentials(asked); name != "" && name != user {
		return asked, false, fmt.Errorf("%w: the password that is stored for this channel is another user's", vms.ErrForbidden)
	}
	asked.Username, asked.Password = user, password
	if asked.URL != "" {
		u, err := url.Parse(asked.URL)
		if err != nil {
			return asked, false, fmt.Errorf("%w: camera: url", vms.ErrInvalid)
		}
		u.User = url.UserPassword(user, password)
		asked.URL = u.String()
	}
	return asked, true, nil
}

// credentials are those that a camera would be asked with: a URL's own go first.
func credentials(c vms.Camera) (user, password string) {
	if u, err := url.Parse(c.URL); err == nil && u.User != nil {
		password, _ = u.User.Password()
		return u.User.Username(), password
	}
	return c.Username, c.Password
}

func hasPassword(c vms.Camera) bool {
	_, password := credentials(c)
	return password != ""
}

// Camera returns the camera of a channel: the one that is to run, or that the
// cloud stored. vms.ErrNotFound: nobody said one.
func (r *Reconciler) Camera(ch vms.ChannelID) (vms.Camera, error) {
	now, certain := r.cfg.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.doc.stream(ch)
	if l := r.locals[ch]; l != nil {
		if s == nil || !s.runs(now, certain, r.doc.zone) {
			return l.camera(r.doc, r.cfg.Address)
		}
	}
	switch {
	case s == nil:
		return vms.Camera{}, fmt.Errorf("%w: no camera of channel %s", vms.ErrNotFound, ch)
	case s.unreadable != "":
		return vms.Camera{}, fmt.Errorf("%w: %s", vms.ErrNotFound, s.unreadable)
	}
	return s.camera, nil
}

// Stop ends what the LAN asked for, and waits until the camera is being left.
// vms.ErrForbidden: the cloud runs the channel now. vms.ErrNotFound: nobody here does.
func (r *Reconciler) Stop(ch vms.ChannelID) error {
	now, certain := r.cfg.Now()
	r.mu.Lock()
	if s := r.doc.stream(ch); s != nil && s.runs(now, certain, r.doc.zone) {
		r.mu.Unlock()
		return fmt.Errorf("%w: the cloud runs this stream; stop it there", vms.ErrForbidden)
	}
	req := r.locals[ch]
	if req == nil {
		r.mu.Unlock()
		return fmt.Errorf("%w: nobody on the LAN runs channel %s", vms.ErrNotFound, ch)
	}
	settled := make(chan struct{})
	delete(r.locals, ch)
	r.settle[ch] = append(r.settle[ch], settled)
	r.mu.Unlock()
	req.tell(fmt.Errorf("%w: the channel was stopped meanwhile", vms.ErrConflict))
	r.keepLocal()
	r.Kick()
	select {
	case <-settled:
	case <-r.over:
	}
	return nil
}

// restore puts what was there before in the place of a request that failed.
func (r *Reconciler) restore(req, old *request) {
	r.mu.Lock()
	mine := r.locals[req.Channel] == req
	if mine && old != nil {
		r.locals[req.Channel] = &request{Local: old.Local, Borrows: old.Borrows, Known: old.Known}
	} else if mine {
		delete(r.locals, req.Channel)
	}
	r.mu.Unlock()
	r.keepLocal() // it may have been kept with another
	r.Kick()
}

// forget drops a request that is over, and tells who waits for it why.
func (r *Reconciler) forget(ch vms.ChannelID, req *request, why error) {
	req.tell(why)
	r.mu.Lock()
	mine := r.locals[ch] == req
	if mine {
		delete(r.locals, ch)
	}
	r.mu.Unlock()
	if mine {
		r.cfg.Log.Info("a request of the LAN is over", "channel", ch, "why", why)
		r.keepLocal()
		r.Kick()
	}
}

// keepLocal puts what the LAN has asked for on flash. The file is readable by
// the agent only, and lies beside the key that would open it.
func (r *Reconciler) keepLocal() {
	r.storeMu.Lock()
	defer r.storeMu.Unlock()
	r.mu.Lock()
	all := make([]*request, 0, len(r.locals))
	for _, l := range r.locals {
		all = append(all, l)
	}
	r.mu.Unlock()
	slices.SortFunc(all, func(a, b *request) int { return strings.Compare(string(a.Channel), string(b.Channel)) })
	data, err := json.Marshal(all)
	if err == nil {
		err = r.cfg.Store.PutDocument(docLocal, data)
	}
	if err != nil {
		r.cfg.Log.Error("cannot keep what was asked for on the LAN; it will not start again with the agent", "err", err)
	}
}

func (r *Reconciler) loadLocal(data []byte) error {
	var all []*request
	if err := json.Unmarshal(data, &all); err != nil || slices.Contains(all, nil) {
		return errors.New("it is no list of requests") // err may repeat what is secret
	}
	for _, l := range all {
		r.locals[l.Channel] = l
	}
	return nil
}
