package embed

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// mqttLogEvery spaces what the broker says of its clients: who cannot log in
// tries for ever, and a hundred of them must not fill the log.
const mqttLogEvery = time.Second

// mqttLog is where the broker logs. It is talkative: its notices are our debug
// lines, its warnings and errors, which are mostly about clients, our warnings.
type mqttLog struct {
	log *slog.Logger

	mu      sync.Mutex
	fatal   error
	last    time.Time
	dropped int
}

var _ server.Logger = (*mqttLog)(nil)

func (l *mqttLog) Noticef(format string, v ...any) { l.debug(fmt.Sprintf(format, v...)) }
func (l *mqttLog) Debugf(format string, v ...any)  {}
func (l *mqttLog) Tracef(format string, v ...any)  {}
func (l *mqttLog) Warnf(format string, v ...any)   { l.say(fmt.Sprintf(format, v...)) }
func (l *mqttLog) Errorf(format string, v ...any)  { l.say(fmt.Sprintf(format, v...)) }

// Fatalf is called where the server as a program would end.
func (l *mqttLog) Fatalf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	l.mu.Lock()
	if l.fatal == nil {
		l.fatal = errors.New(text)
	}
	l.mu.Unlock()
	l.debug(text)
}

func (l *mqttLog) debug(text string) { l.log.Debug("MQTT broker", "says", text) }

func (l *mqttLog) fatalError() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fatal
}

func (l *mqttLog) say(text string) {
	l.mu.Lock()
	now := time.Now()
	if now.Sub(l.last) < mqttLogEvery {
		l.dropped++
		l.mu.Unlock()
		return
	}
	dropped := l.dropped
	l.last, l.dropped = now, 0
	l.mu.Unlock()
	l.log.Warn("MQTT broker", "says", text, "unsaid", dropped)
}
