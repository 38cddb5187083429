package vms

// Cause says why footage is missing. The text is part of the API.
type Cause string

// The causes. Whoever adds one adds its sentence in Sentence.
const (
	CauseCameraOffline  Cause = "camera_offline"  // the camera did not answer or sent nothing
	CauseBufferFull     Cause = "buffer_full"     // the hub's buffer was full and the oldest whole GOPs were dropped
	CauseAgentRestarted Cause = "agent_restarted" // the agent ended with chunks that were only in its RAM
	CauseRejected       Cause = "rejected"        // the worker refused a chunk and with it its GOP
	CauseUndecodable    Cause = "undecodable"     // the keyframe that these frames need is missing
	CauseClockUnknown   Cause = "clock_unknown"   // no clock could say when this was
	CauseStorageFailed  Cause = "storage_failed"  // the hub's flash memory lost what was on it
	CauseHubUnreachable Cause = "hub_unreachable" // the hub has been silent too long; a replay may still revoke it
	CauseUnknown        Cause = "unknown"         // nothing is known but that footage is missing
)

// Sentence explains the cause to people.
func (c Cause) Sentence() string {
	switch c {
	case CauseCameraOffline:
		return "The camera did not answer or sent no video."
	case CauseBufferFull:
		return "The hub's buffer was full while the cloud could not take more; the oldest footage was dropped."
	case CauseAgentRestarted:
		return "The hub's agent restarted before this footage was stored."
	case CauseRejected:
		return "The worker refused this footage."
	case CauseUndecodable:
		return "The keyframe that this footage depends on is missing."
	case CauseClockUnknown:
		return "No clock could say when this footage was recorded."
	case CauseStorageFailed:
		return "The hub's flash memory lost this footage before it could be sent."
	case CauseHubUnreachable:
		return "The hub has not been heard of; what it holds may still arrive."
	}
	return "Footage is missing and the cause is not known."
}

// Gap is a time range known to be missing, with its cause. A gap inside an
// epoch names the chunks that are missing; one between epochs does not.
type Gap struct {
	ID    GapID `json:"id"`
	Cause Cause `json:"cause"`
	TimeRange
	// Chunks is the hole; nil when no chunk was ever muxed (camera offline).
	Chunks *ChunkRange `json:"chunks,omitempty"`
}
