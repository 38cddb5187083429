package nvrlink

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// What each side sends, step by step. PROTOCOL.md says what the messages mean.
var (
	firstOfWorker  = table{"hello": func() message { return new(hello) }}
	firstOfNVR     = table{"challenge": func() message { return new(challenge) }}
	secondOfWorker = table{"proof": func() message { return new(proof) }}
	secondOfNVR    = table{"welcome": func() message { return new(welcome) }, "refused": func() message { return new(refused) }}
	ofWorker       = table{
		"alive":     func() message { return new(alive) },
		"started":   func() message { return new(started) },
		"ended":     func() message { return new(ended) },
		"uploaded":  func() message { return new(uploaded) },
		"parts":     func() message { return new(parts) },
		"wholes":    func() message { return new(wholes) },
		"abandoned": func() message { return new(abandoned) },
		"viewers":   func() message { return new(viewers) },
	}
	ofNVR = table{
		"heard":  func() message { return new(heard) },
		"answer": func() message { return new(answer) },
		"revoke": func() message { return new(revoke) },
		"moved":  func() message { return new(moved) },
		"drain":  func() message { return new(drain) },
		"keys":   func() message { return new(keys) },
	}
)

// hello opens the handshake.
type hello struct {
	ID       vms.WorkerID `json:"worker"`
	Instance vms.Instance `json:"instance"`
	PushURL  string       `json:"push_url"`
	LiveURL  string       `json:"live_url,omitempty"`
	Zone     string       `json:"zone,omitempty"`
	Version  string       `json:"version"`
	Capacity capacity     `json:"capacity"`
	Nonce    hex32        `json:"nonce"`
}

type capacity struct {
	Streams        int   `json:"streams"`
	BytesPerSecond int64 `json:"bytes_per_second"`
}

func newHello(w vms.WorkerInfo, nonce hex32) *hello {
	return &hello{w.ID, w.Instance, w.PushURL, w.LiveURL, w.Zone, w.Version, capacity(w.Capacity), nonce}
}

func (m *hello) info() vms.WorkerInfo {
	return vms.WorkerInfo{ID: m.ID, Instance: m.Instance, PushURL: m.PushURL, LiveURL: m.LiveURL, Zone: m.Zone, Version: m.Version, Capacity: vms.WorkerCapacity(m.Capacity)}
}

func (*hello) kind() string { return "hello" }

// validate leaves to the rules what a worker must be like.
func (m *hello) validate() error {
	if !vms.ValidID(m.ID) || !vms.ValidID(m.Instance) {
		return errors.New("id or instance is no id")
	}
	return validNonce(m.Nonce)
}

func validNonce(n hex32) error {
	if n == (hex32{}) {
		return errors.New("no nonce")
	}
	return nil
}

// challenge proves the NVR.
type challenge struct {
	Nonce hex32 `json:"nonce"`
	Proof hex32 `json:"proof"`
}

func (*challenge) kind() string      { return "challenge" }
func (m *challenge) validate() error { return validNonce(m.Nonce) }

// proof proves the worker.
type proof struct {
	Proof hex32 `json:"proof"`
}

func (*proof) kind() string    { return "proof" }
func (*proof) validate() error { return nil }

// welcome ends the handshake.
type welcome struct {
	Keys       []hex32   `json:"keys"`
	ServerTime time.Time `json:"server_time"`
}

func (*welcome) kind() string { return "welcome" }
func (m *welcome) validate() error {
	return errors.Join(validKeys(m.Keys), validTime(&m.ServerTime))
}

// refused ends it, too.
type refused struct {
	Problem string `json:"problem"`
	Detail  string `json:"detail"`
}

func (*refused) kind() string      { return "refused" }
func (m *refused) validate() error { return validProblem(m.Problem, m.Detail) }

// alive is the heartbeat.
type alive struct {
	Streams        int   `json:"streams"`
	Lanes          int   `json:"lanes"`
	Viewers        int   `json:"viewers"`
	BytesPerSecond int64 `json:"bytes_per_second"`
	TmpfsUsed      int64 `json:"tmpfs_used"`
	TmpfsLimit     int64 `json:"tmpfs_limit"`
	LagMS          int64 `json:"lag_ms"`
	UploadsWaiting int   `json:"uploads_waiting"`
	Overloaded     bool  `json:"overloaded,omitempty"`
	Draining       bool  `json:"draining,omitempty"`
}

func newAlive(l vms.WorkerLoad) *alive {
	return &alive{l.Streams, l.Lanes, l.Viewers, l.BytesPerSecond, l.TmpfsUsed, l.TmpfsLimit, l.Lag.Milliseconds(), l.UploadsWaiting, l.Overloaded, l.Draining}
}

func (m *alive) load() vms.WorkerLoad {
	return vms.WorkerLoad{
		Streams: m.Streams, Lanes: m.Lanes, Viewers: m.Viewers, BytesPerSecond: m.BytesPerSecond,
		TmpfsUsed: m.TmpfsUsed, TmpfsLimit: m.TmpfsLimit, Lag: time.Duration(m.LagMS) * time.Millisecond,
		UploadsWaiting: m.UploadsWaiting, Overloaded: m.Overloaded, Draining: m.Draining,
	}
}

// maxLag is longer than any chunk waits, and does not overflow a time.Duration.
const maxLag = 100 * 365 * 24 * time.Hour

func (*alive) kind() string { return "alive" }
func (m *alive) validate() error {
	if min(int64(m.Streams), int64(m.Lanes), int64(m.Viewers), m.BytesPerSecond, m.TmpfsUsed, m.TmpfsLimit, m.LagMS, int64(m.UploadsWaiting)) < 0 || m.LagMS > maxLag.Milliseconds() {
		return errors.New("a number that cannot be")
	}
	return nil
}

// heard answers alive.
type heard struct{}

func (*heard) kind() string    { return "heard" }
func (*heard) validate() error { return nil }

// question is a message of a worker that is answered.
type question interface {
	message
	number() uint64
	setNumber(id uint64)
	// ask puts it to the rules, for worker w. What it returns has neither number nor problem.
	ask(ctx context.Context, n Notices, w vms.WorkerInfo) (answer, error)
}

// numbered is the number of a question, which its answer repeats.
type numbered struct {
	ID uint64 `json:"id"`
}

func (n *numbered) number() uint64      { return n.ID }
func (n *numbered) setNumber(id uint64) { n.ID = id }
func (n *numbered) checkNumber() error {
	if n.ID == 0 {
		return errors.New("no id")
	}
	return nil
}

// event is a vms.StreamEvent of the worker at the other end.
type event struct {
	Channel    vms.ChannelID  `json:"channel"`
	SID        vms.SID        `json:"sid"`
	Hub        vms.HubID      `json:"hub,omitempty"`
	Generation vms.Generation `json:"generation"`
	Lane       vms.Lane       `json:"lane"`
	Epoch      vms.Epoch      `json:"epoch,omitzero"`
	At         time.Time      `json:"at"`
	Cause      string         `json:"cause,omitempty"`
}

func newEvent(e vms.StreamEvent) event {
	return event{e.Channel, e.SID, e.Hub, e.Generation, e.Lane, e.Epoch, e.At, clip(e.Cause)}
}

func (e *event) of(w vms.WorkerInfo) vms.StreamEvent {
	return vms.StreamEvent{
		Channel: e.Channel, SID: e.SID, Hub: e.Hub, Generation: e.Generation, Worker: w.ID, Instance: w.Instance,
		Lane: e.Lane, Epoch: e.Epoch, At: e.At, Cause: e.Cause,
	}
}

func (e *event) check() error {
	if !vms.ValidID(e.Channel) || !vms.ValidID(e.SID) || e.Hub != "" && !vms.ValidID(e.Hub) {
		return errors.New("channel, sid or hub is no id")
	}
	if !e.Lane.Valid() || len(e.Cause) > maxText {
		return errors.New("no lane, or too long a cause")
	}
	return validTime(&e.At)
}

// started: a lane is up. ended: it is down.
type started struct {
	numbered
	event
}

func (*started) kind() string      { return "started" }
func (m *started) validate() error { return errors.Join(m.checkNumber(), m.check()) }
func (m *started) ask(ctx context.Context, n Notices, w vms.WorkerInfo) (answer, error) {
	return answer{}, n.StreamStarted(ctx, m.of(w))
}

type ended struct {
	numbered
	event
}

func (*ended) kind() string      { return "ended" }
func (m *ended) validate() error { return errors.Join(m.checkNumber(), m.check()) }
func (m *ended) ask(ctx context.Context, n Notices, w vms.WorkerInfo) (answer, error) {
	return answer{}, n.StreamEnded(ctx, m.of(w))
}

// uploaded: an object is stored and verified.
type uploaded struct {
	numbered
	Recording recording `json:"recording"`
}

func (*uploaded) kind() string      { return "uploaded" }
func (m *uploaded) validate() error { return errors.Join(m.checkNumber(), m.Recording.check()) }
func (m *uploaded) ask(ctx context.Context, n Notices, _ vms.WorkerInfo) (answer, error) {
	return answer{}, n.RecordingUploaded(ctx, m.Recording.recording())
}

// parts, wholes and abandoned ask for what their answers hold.
type parts struct {
	numbered
	Channel vms.ChannelID `json:"channel"`
	Epochs  []vms.Epoch   `json:"epochs"`
}

func (*parts) kind() string { return "parts" }
func (m *parts) validate() error {
	if !vms.ValidID(m.Channel) || len(m.Epochs) > maxEpochs {
		return fmt.Errorf("channel is no id, or more than %d epochs", maxEpochs)
	}
	return m.checkNumber()
}

func (m *parts) ask(ctx context.Context, n Notices, _ vms.WorkerInfo) (answer, error) {
	rs, err := n.Parts(ctx, m.Channel, m.Epochs)
	return answer{Recordings: fromRecordings(rs)}, err
}

type wholes struct {
	numbered
	Channel vms.ChannelID  `json:"channel"`
	Chunks  vms.ChunkRange `json:"chunks"`
}

func (*wholes) kind() string { return "wholes" }
func (m *wholes) validate() error {
	if !vms.ValidID(m.Channel) {
		return errors.New("channel is no id")
	}
	return errors.Join(m.checkNumber(), validRange(m.Chunks))
}

func (m *wholes) ask(ctx context.Context, n Notices, _ vms.WorkerInfo) (answer, error) {
	rs, err := n.Wholes(ctx, m.Channel, m.Chunks)
	return answer{Ranges: rs}, err
}

type abandoned struct {
	numbered
	Limit int `json:"limit"`
}

func (*abandoned) kind() string { return "abandoned" }
func (m *abandoned) validate() error {
	if m.Limit < 0 {
		return errors.New("negative limit")
	}
	return m.checkNumber()
}

func (m *abandoned) ask(ctx context.Context, n Notices, _ vms.WorkerInfo) (answer, error) {
	rs, err := n.AbandonedParts(ctx, m.Limit)
	return answer{Recordings: fromRecordings(rs)}, err
}

// viewers: so many look on.
type viewers struct {
	numbered
	Channel vms.ChannelID `json:"channel"`
	Viewers int           `json:"viewers"`
}

func (*viewers) kind() string { return "viewers" }
func (m *viewers) validate() error {
	if !vms.ValidID(m.Channel) || m.Viewers < 0 {
		return errors.New("channel is no id, or fewer than no viewers")
	}
	return m.checkNumber()
}

func (m *viewers) ask(ctx context.Context, n Notices, _ vms.WorkerInfo) (answer, error) {
	return answer{}, n.Viewers(ctx, m.Channel, m.Viewers)
}

// answer answers a question, or goes on in the next message.
type answer struct {
	numbered
	Recordings []recording      `json:"recordings,omitempty"`
	Ranges     []vms.ChunkRange `json:"ranges,omitempty"`
	More       bool             `json:"more,omitempty"`
	Problem    string           `json:"problem,omitempty"`
	Detail     string           `json:"detail,omitempty"`
}

func (*answer) kind() string { return "answer" }
func (m *answer) validate() error {
	if len(m.Recordings) > maxRecordings || len(m.Ranges) > maxChunkRuns {
		return fmt.Errorf("%d recordings and %d ranges, at most %d and %d", len(m.Recordings), len(m.Ranges), maxRecordings, maxChunkRuns)
	}
	for i := range m.Recordings {
		if err := m.Recordings[i].check(); err != nil {
			return err
		}
	}
	for _, r := range m.Ranges {
		if err := validRange(r); err != nil {
			return err
		}
	}
	if m.Problem != "" || m.Detail != "" {
		return errors.Join(m.checkNumber(), validProblem(m.Problem, m.Detail))
	}
	return m.checkNumber()
}

// pages cuts an answer into messages.
func (m *answer) pages() []*answer {
	var out []*answer
	for {
		p := &answer{numbered: m.numbered, Problem: m.Problem, Detail: m.Detail}
		p.Recordings, m.Recordings = cut(m.Recordings, maxRecordings)
		p.Ranges, m.Ranges = cut(m.Ranges, maxChunkRuns)
		p.More = len(m.Recordings)+len(m.Ranges) > 0
		if out = append(out, p); !p.More {
			return out
		}
	}
}

func cut[T any](s []T, n int) (head, rest []T) {
	n = min(n, len(s))
	return s[:n:n], s[n:]
}

// recording is a vms.Recording.
type recording struct {
	Channel       vms.ChannelID  `json:"channel"`
	Key           string         `json:"key"`
	Chunks        vms.ChunkRange `json:"chunks"`
	Number        uint32         `json:"number"`
	Start         time.Time      `json:"start"`
	End           time.Time      `json:"end"`
	MediaNS       int64          `json:"media_ns"`
	Bytes         int64          `json:"bytes"`
	SHA256        hex32          `json:"sha256"`
	HeadLen       int64          `json:"head_len"`
	InitLen       int64          `json:"init_len"`
	Codecs        string         `json:"codecs"`
	Dependent     bool           `json:"dependent,omitempty"`
	TimeUncertain bool           `json:"time_uncertain,omitempty"`
}

func fromRecording(r vms.Recording) recording {
	return recording{
		r.Channel, r.Key, r.Chunks, r.Number, r.Start, r.End, int64(r.Media), r.Bytes, r.SHA256,
		r.HeadLen, r.InitLen, r.Codecs, r.Dependent, r.TimeUncertain,
	}
}

func fromRecordings(rs []vms.Recording) []recording {
	out := make([]recording, len(rs))
	for i, r := range rs {
		out[i] = fromRecording(r)
	}
	return out
}

func (r *recording) recording() vms.Recording {
	return vms.Recording{
		Channel: r.Channel, Key: r.Key, Chunks: r.Chunks, Number: r.Number, Start: r.Start, End: r.End,
		Media: time.Duration(r.MediaNS), Bytes: r.Bytes, SHA256: r.SHA256, HeadLen: r.HeadLen, InitLen: r.InitLen,
		Codecs: r.Codecs, Dependent: r.Dependent, TimeUncertain: r.TimeUncertain,
	}
}

// check sees that r can be written and read again; what makes sense the rules know.
func (r *recording) check() error {
	if !vms.ValidID(r.Channel) || len(r.Key) == 0 || len(r.Key) > maxKeyLen || strings.IndexFunc(r.Key, notInKey) >= 0 {
		return fmt.Errorf("channel is no id, or no object can have the key %.100q", r.Key)
	}
	if len(r.Codecs) > maxText || strings.IndexFunc(r.Codecs, notPlain) >= 0 {
		return errors.New("codecs cannot be")
	}
	return errors.Join(validRange(r.Chunks), validTime(&r.Start), validTime(&r.End))
}

// notInKey: our keys have no other characters, which JSON writes as they are.
func notInKey(c rune) bool {
	return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("/._-", c)
}

// notPlain: what JSON would write longer than it is.
func notPlain(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' }

// revoke cuts sessions off.
type revoke struct {
	SIDs []vms.SID `json:"sids"`
}

func (*revoke) kind() string { return "revoke" }
func (m *revoke) validate() error {
	if len(m.SIDs) > maxSIDs {
		return fmt.Errorf("%d sids, more than %d", len(m.SIDs), maxSIDs)
	}
	for _, s := range m.SIDs {
		if !vms.ValidID(s) {
			return fmt.Errorf("sid %.80q", s)
		}
	}
	return nil
}

// moved tells where a live picture is now.
type moved struct {
	Channel vms.ChannelID `json:"channel"`
	LiveURL string        `json:"live_url,omitempty"`
}

func (*moved) kind() string { return "moved" }
func (m *moved) validate() error {
	if !vms.ValidID(m.Channel) || len(m.LiveURL) > maxURL {
		return errors.New("channel is no id, or too long a URL")
	}
	return nil
}

// drain tells a worker to take nothing new.
type drain struct{}

func (*drain) kind() string    { return "drain" }
func (*drain) validate() error { return nil }

// keys verify tickets from now on, in place of those before.
type keys struct {
	Keys []hex32 `json:"keys"`
}

func (*keys) kind() string      { return "keys" }
func (m *keys) validate() error { return validKeys(m.Keys) }

func fromKeys(ks []ed25519.PublicKey) ([]hex32, error) {
	out := make([]hex32, len(ks))
	for i, k := range ks {
		if copy(out[i][:], k) != len(out[i]) || len(k) != len(out[i]) {
			return nil, fmt.Errorf("%w: a key of %d bytes", vms.ErrInvalid, len(k))
		}
	}
	return out, nil
}

func toKeys(ks []hex32) []ed25519.PublicKey {
	out := make([]ed25519.PublicKey, len(ks))
	for i := range ks {
		out[i] = ks[i][:]
	}
	return out
}

func validKeys(ks []hex32) error {
	if len(ks) > maxKeys {
		return fmt.Errorf("%d keys, more than %d", len(ks), maxKeys)
	}
	return nil
}

func validRange(r vms.ChunkRange) error {
	if r.Epoch == 0 || r.First == 0 || r.First > r.Last {
		return fmt.Errorf("chunks %s", r)
	}
	return nil
}

// validTime makes t UTC, and refuses years that RFC 3339 cannot write.
func validTime(t *time.Time) error {
	*t = t.UTC()
	if y := t.Year(); y < 0 || y > 9999 {
		return fmt.Errorf("year %d", y)
	}
	return nil
}

func validProblem(word, detail string) error {
	if word == "" || len(word) > 32 || len(detail) > 4*maxText { // as it came: what is not UTF-8 grows on the way
		return errors.New("no problem, or too long a detail")
	}
	return nil
}

// clip shortens s to maxText bytes of valid UTF-8.
func clip(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxText)], "")
}
