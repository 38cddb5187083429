package control

import (
	"context"
	"fmt"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/zipato/vms/pkg/wire"
)

// Probe finds out whether broker b lets the hub in: it connects, says who it is,
// and disconnects. What the broker has for the hub stays there, because nothing is
// acknowledged. It must not be used while a Client of the same hub runs: brokers
// end the connection that was there before. The error is as Config.OnState's.
func Probe(ctx context.Context, cfg Config, b wire.Broker) error {
	a, err := parse(b, &cfg)
	if err != nil {
		return err
	}
	limit := defaultTiming().dial
	conn, err := a.dial(ctx, limit)
	if err != nil {
		return fmt.Errorf("dial %s: %w", a.host, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) }) // in the past
	defer stop()
	conn.SetDeadline(time.Now().Add(limit))
	if ctx.Err() != nil {
		return ctx.Err()
	}

	hello := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	hello.ProtocolName, hello.ProtocolVersion = "MQTT", 4
	hello.ClientIdentifier, hello.Keepalive = string(cfg.Hub), 20
	// Not a clean session: that would throw away what waits for the hub.
	hello.UsernameFlag, hello.Username = true, a.username
	hello.PasswordFlag, hello.Password = true, []byte(a.password)
	if err := hello.Write(conn); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	answer := make([]byte, 4) // CONNACK: MQTT 3.1.1, section 3.2
	for n := 0; n < len(answer); {
		m, err := conn.Read(answer[n:])
		if err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		n += m
	}
	if answer[0]>>4 != packets.Connack || answer[1] != 2 {
		return fmt.Errorf("%s does not speak MQTT", a.host)
	}
	switch code := answer[3]; code {
	case packets.Accepted:
		return packets.NewControlPacket(packets.Disconnect).Write(conn)
	case packets.ErrRefusedServerUnavailable:
		return packets.ConnErrors[code]
	default:
		if known, ok := packets.ConnErrors[code]; ok {
			return fmt.Errorf("%w: %w", ErrRefused, known)
		}
		return fmt.Errorf("%w: code %d", ErrRefused, code)
	}
}
