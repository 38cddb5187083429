package storetest

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

func enrolOnce(_ *testing.T, f *fixture) {
	key := ed25519.PublicKey(bytes.Repeat([]byte{7}, ed25519.PublicKeySize))
	f.ok(f.s.CreateHub(f.Context(), nvr.Hub{ID: "h1", Account: "a", CreatedAt: t0}, nvr.CodeHash{1}, t0.Add(time.Minute)))
	_, err := f.s.EnrolHub(f.Context(), nvr.CodeHash{2}, key, "x", t0)
	f.want(err, vms.ErrNotFound)
	h, err := f.s.EnrolHub(f.Context(), nvr.CodeHash{1}, key, "Attic", t0.Add(time.Second))
	f.ok(err)
	want := nvr.Hub{ID: "h1", Account: "a", Name: "Attic", PublicKey: key, CreatedAt: t0, EnrolledAt: t0.Add(time.Second), Revision: t0.Add(time.Second).UnixMilli()}
	if !reflect.DeepEqual(h, want) {
		f.Errorf("EnrolHub = %+v, want %+v", h, want)
	}
	_, err = f.s.EnrolHub(f.Context(), nvr.CodeHash{1}, key, "Attic", t0.Add(time.Second))
	f.want(err, vms.ErrNotFound)
	if again, err := f.s.Hub(f.Context(), "h1"); err != nil || !reflect.DeepEqual(again, want) {
		f.Errorf("Hub = %+v, %v, want %+v", again, err, want)
	}
}

func enrolExpires(_ *testing.T, f *fixture) {
	f.ok(f.s.CreateHub(f.Context(), nvr.Hub{ID: "h1", Account: "a", CreatedAt: t0}, nvr.CodeHash{1}, t0.Add(time.Minute)))
	_, err := f.s.EnrolHub(f.Context(), nvr.CodeHash{1}, make(ed25519.PublicKey, 32), "", t0.Add(time.Minute))
	f.want(err, vms.ErrExpired)
	_, err = f.s.EnrolHub(f.Context(), nvr.CodeHash{1}, make(ed25519.PublicKey, 32), "", t0.Add(time.Minute-time.Microsecond))
	f.ok(err)
}

func hubPages(_ *testing.T, f *fixture) {
	for i := range 5 { // all made at the same instant: the id decides
		f.hub("a", vms.HubID(fmt.Sprintf("h%d", i)))
	}
	f.hub("b", "other")
	var got []vms.HubID
	var after nvr.Cursor
	for {
		hubs, err := f.s.Hubs(f.Context(), "a", after, 2)
		f.ok(err)
		for _, h := range hubs {
			got = append(got, h.ID)
			after = nvr.Cursor{At: h.CreatedAt, ID: string(h.ID)}
		}
		if len(hubs) < 2 {
			break
		}
	}
	if want := []vms.HubID{"h0", "h1", "h2", "h3", "h4"}; !slices.Equal(got, want) {
		f.Errorf("pages = %v, want %v", got, want)
	}
}

func revokeHub(_ *testing.T, f *fixture) {
	f.hub("a", "h1")
	f.channel("a", "c1", "h1")
	f.session("s1", "c1", "h1")
	f.session("s2", "c1", "")
	_, err := f.s.RevokeHub(f.Context(), "b", "h1", t0)
	f.want(err, vms.ErrNotFound)
	sids, err := f.s.RevokeHub(f.Context(), "a", "h1", t0.Add(time.Hour))
	f.ok(err)
	if !slices.Equal(sids, []vms.SID{"s1"}) {
		f.Errorf("revoked sessions %v, want s1", sids)
	}
	h, err := f.s.Hub(f.Context(), "h1")
	f.ok(err)
	if !h.RevokedAt.Equal(t0.Add(time.Hour)) || len(h.PublicKey) != 0 {
		f.Errorf("revoked hub = %+v", h)
	}
	if hubs, err := f.s.Hubs(f.Context(), "a", nvr.Cursor{}, 10); err != nil || len(hubs) != 0 {
		f.Errorf("a revoked hub is still listed: %v, %v", hubs, err)
	}
	if c, err := f.s.Channel(f.Context(), "c1"); err != nil || c.Hub != "" {
		f.Errorf("channel still has hub %q, %v", c.Hub, err)
	}
	_, err = f.s.RevokeHub(f.Context(), "a", "h1", t0)
	f.want(err, vms.ErrNotFound)
}

func channelRoundTrip(_ *testing.T, f *fixture) {
	f.hub("a", "h1")
	want := f.channel("a", "c1", "h1")
	f.channel("a", "c0", "")
	f.channel("b", "c2", "")
	got, err := f.s.Channel(f.Context(), "c1")
	f.ok(err)
	if !reflect.DeepEqual(got, want) {
		f.Errorf("Channel = %+v, want %+v", got, want)
	}
	rows, err := f.s.Channels(f.Context(), "a", nvr.Cursor{At: t0, ID: "c0"}, 10)
	f.ok(err)
	if len(rows) != 1 || rows[0].ID != "c1" {
		f.Errorf("Channels after c0 = %+v, want c1", rows)
	}
	_, err = f.s.Channel(f.Context(), "none")
	f.want(err, vms.ErrNotFound)
	clear := want
	clear.ID, clear.Camera.Password = "c3", "secret"
	f.want(f.s.CreateChannel(f.Context(), clear), vms.ErrInvalid)
}

func channelHub(_ *testing.T, f *fixture) {
	f.hub("b", "theirs")
	row := nvr.ChannelRow{ID: "c1", Account: "a", Hub: "theirs", Name: "x", Mode: nvr.ModeOnDemand, CreatedAt: t0}
	f.want(f.s.CreateChannel(f.Context(), row), vms.ErrNotFound)
	f.channel("a", "c1", "")
	_, err := f.s.UpdateChannel(f.Context(), "a", "c1", t0, func(r *nvr.ChannelRow) error { r.Hub = "theirs"; return nil })
	f.want(err, vms.ErrNotFound)
}

func updateChannel(_ *testing.T, f *fixture) {
	f.hub("a", "h1")
	f.channel("a", "c1", "h1")
	no := errors.New("no")
	_, err := f.s.UpdateChannel(f.Context(), "a", "c1", t0, func(r *nvr.ChannelRow) error { r.Name = "lost"; return no })
	f.want(err, no)
	_, err = f.s.UpdateChannel(f.Context(), "b", "c1", t0, func(*nvr.ChannelRow) error { return nil })
	f.want(err, vms.ErrNotFound)
	want, err := f.s.UpdateChannel(f.Context(), "a", "c1", t0, func(r *nvr.ChannelRow) error {
		r.Name, r.Wanted, r.SID, r.Mode, r.Secret = "Gate", true, "s1", nvr.ModeContinuous, []byte{9}
		r.Camera = vms.Camera{URL: "rtsp://cam/1"}
		r.Schedule, r.PreRoll, r.PostRoll, r.WantedBy, r.WantedUntil = "mon", 7, 70, nvr.WantedByRequest, t0.Add(time.Hour)
		r.StoppedRevision = 4711
		return nil
	})
	f.ok(err)
	h, rows, err := f.s.DesiredChannels(f.Context(), "h1")
	f.ok(err)
	if h.ID != "h1" || len(rows) != 1 || !reflect.DeepEqual(rows[0], want) || want.Name != "Gate" {
		f.Errorf("DesiredChannels = %+v, want %+v", rows, want)
	}
}

func deleteChannel(_ *testing.T, f *fixture) {
	f.channel("a", "c1", "")
	f.session("s1", "c1", "")
	r := rec("c1", 1, 1, 30)
	f.news(r)
	_, err := f.s.DeleteChannel(f.Context(), "b", "c1", t0)
	f.want(err, vms.ErrNotFound)
	sids, err := f.s.DeleteChannel(f.Context(), "a", "c1", t0)
	f.ok(err)
	if !slices.Equal(sids, []vms.SID{"s1"}) || !slices.Equal(f.garbage(), []string{r.Key}) {
		f.Errorf("revoked %v, garbage %v, want s1 and %s", sids, f.garbage(), r.Key)
	}
	_, err = f.s.DeleteChannel(f.Context(), "a", "c1", t0)
	f.want(err, vms.ErrNotFound)
	_, err = f.s.Channel(f.Context(), "c1")
	f.want(err, vms.ErrNotFound)
	f.want(f.s.CreateSession(f.Context(), nvr.Session{SID: "s2", Account: "a", Channel: "c1", State: nvr.SessionOpen, CreatedAt: t0}), vms.ErrNotFound)
	f.generations([]vms.SID{"s1"}, 0)
	late := rec("c1", 1, 31, 60)
	if v := f.put(late); v.News {
		f.Error("a recording of a deleted channel was registered")
	}
	if !slices.Contains(f.garbage(), late.Key) {
		f.Error("a late recording of a deleted channel stays in the bucket")
	}
}

func bindSession(_ *testing.T, f *fixture) {
	f.hub("a", "h1")
	f.hub("a", "h2")
	f.channel("a", "c1", "")
	f.session("s1", "c1", "")
	_, err := f.s.BindSession(f.Context(), "none", "h1")
	f.want(err, vms.ErrNotFound)
	for range 2 {
		s, err := f.s.BindSession(f.Context(), "s1", "h1")
		f.ok(err)
		if s.Hub != "h1" || s.Channel != "c1" || s.Account != "a" || !s.CreatedAt.Equal(t0) {
			f.Errorf("BindSession = %+v", s)
		}
	}
	_, err = f.s.BindSession(f.Context(), "s1", "h2")
	f.want(err, vms.ErrConflict)
	f.ok(f.s.EndSession(f.Context(), "s1"))
	_, err = f.s.BindSession(f.Context(), "s1", "h1")
	f.want(err, vms.ErrConflict)
}

func generations(_ *testing.T, f *fixture) {
	f.channel("a", "c1", "")
	f.channel("a", "c2", "")
	f.session("s1", "c1", "")
	f.session("s2", "c1", "")
	f.session("s3", "c2", "")
	f.generations([]vms.SID{"s1"}, 1)
	f.generations([]vms.SID{"s2", "nobody", "s3", "s1", "s1"}, 2, 0, 1, 3, 4) // another channel, another count
	f.generations(nil)
	f.generations([]vms.SID{"s1"}, 5)
	if s, err := f.s.Session(f.Context(), "s2"); err != nil || s.Generation != 2 {
		f.Errorf("session keeps generation %d, %v, want 2", s.Generation, err)
	}
}

// generations raises, and compares.
func (f *fixture) generations(sids []vms.SID, want ...vms.Generation) {
	f.Helper()
	got, err := f.s.NextGenerations(f.Context(), sids)
	f.ok(err)
	if !slices.Equal(got, want) {
		f.Errorf("generations of %v are %d, want %d", sids, got, want)
	}
}

func revokedStays(_ *testing.T, f *fixture) {
	f.channel("a", "c1", "")
	f.session("s1", "c1", "")
	_, err := f.s.DeleteChannel(f.Context(), "a", "c1", t0)
	f.ok(err)
	f.ok(f.s.EndSession(f.Context(), "s1"))
	if s, err := f.s.Session(f.Context(), "s1"); err != nil || s.State != nvr.SessionRevoked {
		f.Errorf("session is %s, %v, want revoked", s.State, err)
	}
}
