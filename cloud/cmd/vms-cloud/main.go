// Command vms-cloud is the cloud in one process: NVR, worker, API, page and,
// unless others elsewhere are named, object store and MQTT broker, with
// everything under one data directory.
//
// `vms-cloud mosquitto` makes the files with which Mosquitto takes the broker's
// place.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
	_ "time/tzdata" // schedules are in the zones of hubs, and a container may have none

	"github.com/zipato/vms/cloud"
	"github.com/zipato/vms/pkg/obs"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return // it was printed
		}
		fmt.Fprintln(os.Stderr, "vms-cloud:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == "mosquitto" {
		return mosquitto(ctx, args[1:], stdout, stderr)
	}
	var cfg cloud.Config
	var logLevel, logFormat string
	var showVersion bool
	fs := flag.NewFlagSet("vms-cloud", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&cfg.Data, "data", env("VMS_DATA", "data"), "directory that keeps everything (VMS_DATA)")
	fs.StringVar(&cfg.Listen, "listen", env("VMS_LISTEN", "127.0.0.1:8080"), "address of API, page and WebSockets (VMS_LISTEN)")
	fs.StringVar(&cfg.S3Listen, "s3-listen", env("VMS_S3_LISTEN", "127.0.0.1:9000"), "address of the embedded object store (VMS_S3_LISTEN)")
	fs.StringVar(&cfg.PublicURL, "public-url", env("VMS_PUBLIC_URL", ""), "URL under which hubs and browsers reach -listen (VMS_PUBLIC_URL)")
	fs.StringVar(&cfg.S3PublicURL, "s3-public-url", env("VMS_S3_PUBLIC_URL", ""), "URL under which browsers reach the object store (VMS_S3_PUBLIC_URL)")
	fs.StringVar(&cfg.S3.URL, "s3-url", env("VMS_S3_URL", ""), "URL of an object store elsewhere, instead of the embedded one; keys in VMS_S3_ACCESS_KEY and VMS_S3_SECRET_KEY (VMS_S3_URL)")
	fs.StringVar(&cfg.S3.Region, "s3-region", env("VMS_S3_REGION", "us-east-1"), "region of -s3-url (VMS_S3_REGION)")
	fs.StringVar(&cfg.S3.Bucket, "s3-bucket", env("VMS_S3_BUCKET", "vms-recordings"), "bucket of -s3-url; it must be there (VMS_S3_BUCKET)")
	fs.StringVar(&cfg.MQTTListen, "mqtt-listen", env("VMS_MQTT_LISTEN", "127.0.0.1:1883"), "address of the embedded MQTT broker (VMS_MQTT_LISTEN)")
	fs.StringVar(&cfg.MQTTPublicURL, "mqtt-public-url", env("VMS_MQTT_PUBLIC_URL", ""), "URL under which hubs reach the MQTT broker (VMS_MQTT_PUBLIC_URL)")
	fs.StringVar(&cfg.MQTTCert, "mqtt-cert", env("VMS_MQTT_CERT", ""), "certificate, a file of PEM, with which the embedded MQTT broker speaks TLS (VMS_MQTT_CERT)")
	fs.StringVar(&cfg.MQTTKey, "mqtt-key", env("VMS_MQTT_KEY", ""), "key of -mqtt-cert (VMS_MQTT_KEY)")
	fs.StringVar(&cfg.MQTT.URL, "mqtt-url", env("VMS_MQTT_URL", ""), "URL of an MQTT broker elsewhere, instead of the embedded one; see vms-cloud mosquitto (VMS_MQTT_URL)")
	fs.DurationVar(&cfg.ReconcileEvery, "reconcile", 0, "how often the bucket is listed for objects that no notice told of; by default every hour, with -s3-url every minute")
	fs.BoolVar(&cfg.Insecure, "insecure", false, "listen off the loopback, and talk to -s3-url and -mqtt-url, without TLS")
	fs.StringVar(&cfg.WorkerDir, "worker-dir", env("VMS_WORKER_DIR", ""), "directory of unfinished recordings, best on tmpfs; below -data by default (VMS_WORKER_DIR)")
	fs.Int64Var(&cfg.WorkerBytes, "worker-bytes", 512<<20, "bytes of unfinished recordings, above which hubs have to wait")
	fs.DurationVar(&cfg.RetentionAge, "retention", 2*time.Hour, "how long recordings are kept, 0 for ever")
	fs.Int64Var(&cfg.RetentionBytes, "retention-bytes", 5_000_000_000, "bytes of recordings that are kept, 0 for any number")
	fs.DurationVar(&cfg.Recording, "recording", 30*time.Second, "length of a recording")
	fs.DurationVar(&cfg.UnreachableAfter, "unreachable", 24*time.Hour, "how long what a silent hub holds is pending, before it counts as missing")
	fs.StringVar(&logLevel, "log-level", env("VMS_LOG_LEVEL", "info"), "debug, info, warn or error (VMS_LOG_LEVEL)")
	fs.StringVar(&logFormat, "log-format", env("VMS_LOG_FORMAT", "text"), "text or json (VMS_LOG_FORMAT)")
	fs.BoolVar(&showVersion, "version", false, "print the version")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if showVersion {
		fmt.Fprintln(stdout, "vms-cloud", version)
		return nil
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("%q is no command; see vms-cloud -help", strings.Join(fs.Args(), " "))
	}
	if cfg.Recording < time.Second || cfg.Recording > 10*time.Minute {
		return fmt.Errorf("-recording %v: want 1s to 10m", cfg.Recording)
	}
	if cfg.RetentionAge < 0 || cfg.RetentionBytes < 0 {
		return errors.New("-retention and -retention-bytes cannot be negative")
	}
	if cfg.ReconcileEvery < 0 || cfg.UnreachableAfter <= 0 {
		return errors.New("-reconcile cannot be negative, and -unreachable must be more than nothing")
	}
	if cfg.S3.URL != "" { // not flags: everybody sees those of a process
		cfg.S3.AccessKey, cfg.S3.SecretKey = os.Getenv("VMS_S3_ACCESS_KEY"), os.Getenv("VMS_S3_SECRET_KEY")
	}
	if cfg.MQTT.URL != "" {
		cfg.MQTT.Username, cfg.MQTT.Password = os.Getenv("VMS_MQTT_USERNAME"), os.Getenv("VMS_MQTT_PASSWORD")
	}
	var err error
	if cfg.Log, err = obs.NewLogger(stderr, logLevel, logFormat); err != nil {
		return err
	}
	cfg.Version = version
	c, err := cloud.New(ctx, cfg)
	if err != nil {
		return err
	}
	cfg.Log.Info("cloud starts", "url", c.URL(), "mqtt", c.BrokerURL(), "version", version)
	fmt.Fprintln(stdout, "listening", c.URL()) // whoever started us may be waiting for it
	return c.Run(ctx)
}

func env(name, def string) string {
	if v, ok := os.LookupEnv(name); ok {
		return v
	}
	return def
}
