// Package storetest holds every nvr.Store to the promises written there. Each
// backend runs the same suite in its plain tests.
package storetest

import (
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

// Run runs the suite. open returns an empty store and cleans up after itself.
func Run(t *testing.T, open func(t *testing.T) nvr.Store) {
	tests := []struct {
		name string
		run  func(*testing.T, *fixture)
	}{
		{"EnrolmentCodeWorksOnce", enrolOnce},
		{"EnrolmentCodeExpires", enrolExpires},
		{"HubsAreListedPerAccount", hubPages},
		{"RevokedHubLosesItAll", revokeHub},
		{"ChannelComesBackAsItWas", channelRoundTrip},
		{"ChannelNeedsAHubOfItsAccount", channelHub},
		{"UpdateIsAllOrNothing", updateChannel},
		{"DeletedChannelLeavesGarbage", deleteChannel},
		{"RevisionRisesWithEveryChange", revisions},
		{"RevisionFollowsTheClock", revisionClock},
		{"RevisionOfARestoredDatabase", revisionRestored},
		{"PublishedNeverFalls", published},
		{"HubComesBackAsItWas", hubRoundTrip},
		{"StartAndStopAreOneStep", startStop},
		{"StopKnowsItsRevision", stopRevision},
		{"MovedChannelConcernsBothHubs", moved},
		{"ModesAreRemembered", modes},
		{"TransientChannels", transient},
		{"FirstHubGetsTheSession", bindSession},
		{"GenerationRisesOverSessions", generations},
		{"RevokedSessionStaysRevoked", revokedStays},
		{"SameRecordingIsNoNews", recordingTwice},
		{"ConcurrentDuplicatesMakeOneRow", recordingRace},
		{"LargerRecordingSupersedes", supersede},
		{"OverlapIsKeptAndTold", overlap},
		{"WholeSupersedesItsParts", wholeAndParts},
		{"LargerPartStays", largerPart},
		{"PartsThatShareChunksBothStay", partsOverlap},
		{"RestOfAPart", restOfAPart},
		{"NothingAcceptedIsLost", partsInAnyOrder},
		{"PartsAreFoundByEpoch", parts},
		{"DeletionDoesNotWaitForURLs", deletionIsNow},
		{"GarbageIsNotResurrected", garbageStays},
		{"RecordingsByTime", recordingsByTime},
		{"Neighbours", neighbours},
		{"RecordedChunks", recordedChunks},
		{"GapsAreIdempotent", gaps},
		{"IdleTimes", idle},
		{"ExpireTakesTheOldest", expire},
		{"Forget", forget},
		{"ModesAreForgotten", forgetModes},
		{"DiscardedObjects", discard},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.run(t, &fixture{T: t, s: open(t)})
		})
	}
}

// t0 has microseconds, so that a backend that rounds is found out.
var t0 = time.Date(2026, 11, 3, 12, 0, 0, 123_456_000, time.UTC)

type fixture struct {
	*testing.T
	s nvr.Store
}

func (f *fixture) ok(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) want(err, kind error) {
	f.Helper()
	if !errors.Is(err, kind) {
		f.Fatalf("err = %v, want %v", err, kind)
	}
}

// hub makes an enrolled hub.
func (f *fixture) hub(acct vms.AccountID, id vms.HubID) {
	f.Helper()
	code := nvr.CodeHash(sha256.Sum256([]byte(id)))
	f.ok(f.s.CreateHub(f.Context(), nvr.Hub{ID: id, Account: acct, Name: string(id), CreatedAt: t0}, code, t0.Add(time.Minute)))
	_, err := f.s.EnrolHub(f.Context(), code, make(ed25519.PublicKey, ed25519.PublicKeySize), "", t0)
	f.ok(err)
}

func (f *fixture) channel(acct vms.AccountID, id vms.ChannelID, hub vms.HubID) nvr.ChannelRow {
	f.Helper()
	row := nvr.ChannelRow{ID: id, Account: acct, Hub: hub, Name: "Door", Mode: nvr.ModeOnDemand,
		Camera: vms.Camera{Host: "10.0.0.7", Port: 554, Username: "admin", Templates: map[string]string{"high": "rtsp://{host}/1"}},
		Secret: []byte{1, 0, 255}, CreatedAt: t0}
	f.ok(f.s.CreateChannel(f.Context(), row))
	return row
}

func (f *fixture) session(sid vms.SID, ch vms.ChannelID, hub vms.HubID) {
	f.Helper()
	f.ok(f.s.CreateSession(f.Context(), nvr.Session{SID: sid, Account: "a", Channel: ch, Hub: hub, State: nvr.SessionOpen, CreatedAt: t0}))
}

// rec is a recording of chunks first to last, a second each, from t0 on.
func rec(ch vms.ChannelID, epoch vms.Epoch, first, last uint64) vms.Recording {
	start := t0.Add(time.Duration(first) * time.Second)
	return vms.Recording{Channel: ch, Key: vms.RecordingKey(ch, start, 3), Chunks: vms.ChunkRange{Epoch: epoch, First: first, Last: last},
		Number: 3, Start: start, End: t0.Add(time.Duration(last+1) * time.Second), Media: time.Duration(last+1-first) * time.Second,
		Bytes: 1000, SHA256: sha256.Sum256([]byte{byte(epoch), byte(first), byte(last)}), HeadLen: 90, InitLen: 60,
		Codecs: "avc1.64001f,mp4a.40.2", TimeUncertain: true}
}

// keep is for how long the objects of superseded recordings are kept.
const keep = time.Hour

func (f *fixture) put(r vms.Recording) nvr.Verdict {
	f.Helper()
	v, err := f.s.PutRecording(f.Context(), r, t0, keep)
	f.ok(err)
	return v
}

func (f *fixture) news(r vms.Recording) {
	f.Helper()
	if v := f.put(r); v != (nvr.Verdict{News: true}) {
		f.Fatalf("PutRecording(%s) = %+v, want plain news", r.Chunks, v)
	}
}

func (f *fixture) recordings(ch vms.ChannelID) []vms.Recording {
	f.Helper()
	rs, err := f.s.Recordings(f.Context(), ch, t0.Add(-1000*time.Hour), t0.Add(1000*time.Hour), nvr.Cursor{}, 1000)
	f.ok(err)
	return rs
}

// garbage lists what may be deleted at some time, garbageAt what may at now.
func (f *fixture) garbage() []string {
	f.Helper()
	return f.garbageAt(t0.Add(1000 * time.Hour))
}

func (f *fixture) garbageAt(now time.Time) []string {
	f.Helper()
	keys, err := f.s.Garbage(f.Context(), now, 1000)
	f.ok(err)
	return keys
}
