package camera

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/bluenviron/gortsplib/v5"
)

// AskKeyframe asks the camera for a keyframe: by ONVIF where it knows that, else
// by PAUSE and PLAY on the session that runs, which the sink sees as a short hole
// and no more. It may be called at any time, never blocks and promises nothing;
// what is asked between sessions is forgotten, for a session begins with a
// keyframe.
func (s *Source) AskKeyframe() {
	if se := s.playing.Load(); se != nil {
		select {
		case se.asked <- struct{}{}:
		default: // it is being asked
		}
	}
}

// askKeyframes serves AskKeyframe until ctx ends.
func (se *session) askKeyframes(ctx context.Context, client *gortsplib.Client) {
	for {
		select {
		case <-se.asked:
			se.askKeyframe(ctx, client)
		case <-ctx.Done():
			return
		}
	}
}

// askKeyframe tries one way after the other until a keyframe comes.
func (se *session) askKeyframe(ctx context.Context, client *gortsplib.Client) {
	since := se.key.Load()
	onvif := se.askONVIF(ctx)
	if onvif == nil && se.keyframeCame(ctx, since) || ctx.Err() != nil {
		return
	}
	rtsp := se.playAgain(client)
	if rtsp == nil && se.keyframeCame(ctx, since) || ctx.Err() != nil {
		return
	}
	if !se.noKeyframe {
		se.noKeyframe = true
		text := func(err error) string {
			if err == nil {
				return "granted, and none came"
			}
			return se.address.redact(err).Error()
		}
		se.log.Warn("camera gives no keyframe though asked", "onvif", text(onvif), "pause_and_play", text(rtsp))
	}
}

// keyframeCame waits for a keyframe later than since.
func (se *session) keyframeCame(ctx context.Context, since int64) bool {
	wait := time.NewTimer(se.timeout / 2)
	defer wait.Stop()
	look := time.NewTicker(max(se.timeout/50, time.Millisecond))
	defer look.Stop()
	for se.key.Load() == since {
		select {
		case <-look.C:
		case <-wait.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// playAgain pauses the camera and lets it play: most begin with a keyframe. One
// that refused once is not asked again, since there are some that answer what
// they do not know with silence, which costs the session.
func (se *session) playAgain(client *gortsplib.Client) error {
	if se.noPause {
		return errGivenUp
	}
	if _, err := client.Pause(); err != nil {
		se.noPause = true
		return fmt.Errorf("pause: %w", err)
	}
	se.resumes.Add(1)
	if _, err := client.Play(nil); err != nil {
		se.noPause = true
		// A new session begins with a keyframe. The cause is not passed on: that the
		// camera refuses this says nothing about the stream's address.
		se.broken <- errors.New("play after pause: " + err.Error())
		return fmt.Errorf("play after pause: %w", err)
	}
	return nil
}

// askONVIF asks by ONVIF, unless the camera refused the password there: a
// password that is tried too often locks the account.
func (se *session) askONVIF(ctx context.Context) error {
	if se.noONVIF {
		return errGivenUp
	}
	ctx, cancel := context.WithTimeout(ctx, 3*se.timeout)
	defer cancel()
	port := se.ONVIFPort
	if port == 0 {
		port = 80
	}
	c := newONVIF(net.JoinHostPort(se.address.Host(), strconv.Itoa(port)), se.address.url.User, se.timeout)
	err := c.synchronize(ctx)
	se.noONVIF = isUnauthorized(err)
	return err
}

var errGivenUp = errors.New("refused before")

// isKeyframe reports whether decoding may begin with au.
func isKeyframe(codec string, au [][]byte) bool {
	for _, nalu := range au {
		if len(nalu) < 2 {
			continue
		}
		switch codec {
		case "h264":
			// IDR, or an SEI message that begins with a recovery point (ITU-T H.264,
			// table 7-1 and section D.1.8)
			if typ := nalu[0] & 0x1f; typ == 5 || typ == 6 && nalu[1] == 6 {
				return true
			}
		case "h265": // BLA, IDR and CRA, ITU-T H.265, table 7-1
			if typ := nalu[0] >> 1 & 0x3f; typ >= 16 && typ <= 21 {
				return true
			}
		default:
			return true
		}
	}
	return false
}
