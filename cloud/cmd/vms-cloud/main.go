// Command vms-cloud is the cloud in one process: NVR, worker, API, page and,
// unless others elsewhere are named, object store and MQTT broker, with
// everything under one data directory. With -roles it is some of it: one process
// of api,nvr and any number of worker.
//
// `vms-cloud workers` lists the workers of a running cloud, and drains one.
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
	"slices"
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
	if len(args) > 0 {
		switch args[0] {
		case "mosquitto":
			return mosquitto(ctx, args[1:], stdout, stderr)
		case "workers":
			return workers(ctx, args[1:], stdout, stderr)
		}
	}
	var cfg cloud.Config
	var logLevel, logFormat, roles string
	var maxMbit int64
	var showVersion bool
	fs := flag.NewFlagSet("vms-cloud", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&roles, "roles", env("VMS_ROLES", "all"), "what this process does: api,nvr or worker or all (VMS_ROLES)")
	fs.StringVar(&cfg.Data, "data", env("VMS_DATA", "data"), "directory that keeps everything; a worker alone keeps nothing there, but finds the keys of an NVR on the same machine (VMS_DATA)")
	fs.StringVar(&cfg.Listen, "listen", env("VMS_LISTEN", "127.0.0.1:8080"), "address of API, page and WebSockets (VMS_LISTEN)")
	fs.StringVar(&cfg.S3Listen, "s3-listen", env("VMS_S3_LISTEN", "127.0.0.1:9000"), "address of the embedded object store (VMS_S3_LISTEN)")
	fs.StringVar(&cfg.PublicURL, "public-url", env("VMS_PUBLIC_URL", ""), "URL under which hubs and browsers reach -listen (VMS_PUBLIC_URL)")
	fs.StringVar(&cfg.S3PublicURL, "s3-public-url", env("VMS_S3_PUBLIC_URL", ""), "URL under which browsers reach the object store (VMS_S3_PUBLIC_URL)")
	fs.StringVar(&cfg.S3.URL, "s3-url", env("VMS_S3_URL", ""), "URL of an object store elsewhere, instead of the embedded one; keys in VMS_S3_ACCESS_KEY and VMS_S3_SECRET_KEY (VMS_S3_URL)")
	fs.StringVar(&cfg.S3.Region, "s3-region", env("VMS_S3_REGION", "us-east-1"), "region of -s3-url (VMS_S3_REGION)")
	fs.StringVar(&cfg.S3.Bucket, "s3-bucket", env("VMS_S3_BUCKET", "vms-recordings"), "bucket of -s3-url; it must be there (VMS_S3_BUCKET)")
	fs.StringVar(&cfg.Uploader, "uploader", env("VMS_UPLOADER", cloud.UploaderS3), "what puts recordings into the object store: s3, or rclone, which runs that program (VMS_UPLOADER)")
	fs.StringVar(&cfg.RcloneProgram, "rclone-program", env("VMS_RCLONE_PROGRAM", "rclone"), "rclone, for -uploader rclone: a path, or a name in PATH (VMS_RCLONE_PROGRAM)")
	fs.StringVar(&cfg.RcloneRemote, "rclone-remote", env("VMS_RCLONE_REMOTE", ""), "where -uploader rclone copies to: name:bucket of its own configuration, the same bucket as the object store's; by default one made of -s3-url and its keys (VMS_RCLONE_REMOTE)")
	fs.StringVar(&cfg.MQTTListen, "mqtt-listen", env("VMS_MQTT_LISTEN", "127.0.0.1:1883"), "address of the embedded MQTT broker (VMS_MQTT_LISTEN)")
	fs.StringVar(&cfg.MQTTPublicURL, "mqtt-public-url", env("VMS_MQTT_PUBLIC_URL", ""), "URL under which hubs reach the MQTT broker (VMS_MQTT_PUBLIC_URL)")
	fs.StringVar(&cfg.MQTTCert, "mqtt-cert", env("VMS_MQTT_CERT", ""), "certificate, a file of PEM, with which the embedded MQTT broker speaks TLS (VMS_MQTT_CERT)")
	fs.StringVar(&cfg.MQTTKey, "mqtt-key", env("VMS_MQTT_KEY", ""), "key of -mqtt-cert (VMS_MQTT_KEY)")
	fs.StringVar(&cfg.MQTT.URL, "mqtt-url", env("VMS_MQTT_URL", ""), "URL of an MQTT broker elsewhere, instead of the embedded one; see vms-cloud mosquitto (VMS_MQTT_URL)")
	fs.DurationVar(&cfg.ReconcileEvery, "reconcile", 0, "how often the bucket is listed for objects that no notice told of; by default every hour, with -s3-url every minute")
	fs.BoolVar(&cfg.Insecure, "insecure", false, "listen off the loopback, and talk to -s3-url and -mqtt-url, without TLS")
	fs.StringVar(&cfg.NVRURL, "nvr-url", env("VMS_NVR_URL", ""), "where a worker alone finds its NVR: ws:// or wss://HOST/workers/v1 (VMS_NVR_URL)")
	fs.StringVar(&cfg.ClusterKeyFile, "cluster-key-file", env("VMS_CLUSTER_KEY_FILE", ""), "file with the key that NVR and workers have in common; by default cluster-key in -data, which the NVR makes (VMS_CLUSTER_KEY_FILE)")
	fs.StringVar((*string)(&cfg.WorkerID), "worker-id", env("VMS_WORKER_ID", ""), "id of the worker; by default worker_local, that of one alone the host's name and something random, which -worker-dir remembers (VMS_WORKER_ID)")
	fs.StringVar(&cfg.Zone, "zone", env("VMS_ZONE", ""), "where the worker is; hubs may prefer a zone (VMS_ZONE)")
	fs.IntVar(&cfg.Capacity.Streams, "max-streams", 0, "streams that the worker takes, 0 for no limit of its own")
	fs.Int64Var(&maxMbit, "max-mbit", 0, "Mbit/s that the worker takes, 0 for no limit of its own")
	fs.StringVar(&cfg.WorkerDir, "worker-dir", env("VMS_WORKER_DIR", ""), "directory of unfinished recordings, best on tmpfs; below -data by default (VMS_WORKER_DIR)")
	fs.Int64Var(&cfg.WorkerBytes, "worker-bytes", 512<<20, "bytes of unfinished recordings, above which hubs have to wait")
	fs.StringVar(&cfg.Mirror, "mirror", "", "RTSP server, such as MediaMTX, to which the worker publishes each live stream as well: rtsp://HOST:8554/{channel}; one with a password better in VMS_MIRROR")
	fs.DurationVar(&cfg.DrainFor, "drain-for", 100*time.Second, "how long a worker that is told to end waits at most until its streams are at others")
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
	var err error
	if cfg.Roles, err = cloud.ParseRoles(roles); err != nil {
		return fmt.Errorf("-roles (VMS_ROLES): %w", err)
	}
	if err := fits(fs, cfg.Roles); err != nil {
		return err
	}
	if cfg.Mirror == "" {
		cfg.Mirror = os.Getenv("VMS_MIRROR") // no default above: -help would show the password in it
	}
	if maxMbit > 1<<40 {
		return errors.New("-max-mbit is too much")
	}
	cfg.Capacity.BytesPerSecond = maxMbit * 1_000_000 / 8
	if cfg.DrainFor <= 0 {
		return errors.New("-drain-for must be more than nothing")
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
	if cfg.Log, err = obs.NewLogger(stderr, logLevel, logFormat); err != nil {
		return err
	}
	cfg.Version = version
	c, err := cloud.New(ctx, cfg)
	if err != nil {
		return err
	}
	about := []any{"roles", cfg.Roles.String(), "url", c.URL(), "version", version}
	if cfg.Roles.Has(cloud.RoleNVR) {
		about = append(about, "mqtt", c.BrokerURL())
	}
	cfg.Log.Info("cloud starts", about...)
	fmt.Fprintln(stdout, "listening", c.URL()) // whoever started us may be waiting for it
	return c.Run(ctx)
}

// flagsOf are the flags that mean nothing to a process without a role. Most
// variables may be those of a whole machine, so they are not held against it.
var flagsOf = map[cloud.Roles][]string{
	cloud.RoleNVR: {
		"s3-listen", "s3-public-url", "mqtt-listen", "mqtt-public-url", "mqtt-cert", "mqtt-key", "mqtt-url",
		"reconcile", "retention", "retention-bytes", "recording", "unreachable",
	},
	cloud.RoleWorker: {
		"uploader", "rclone-program", "rclone-remote", "worker-id", "zone", "max-streams", "max-mbit", "worker-dir", "worker-bytes", "mirror", "drain-for",
	},
}

// fits refuses flags that would do nothing.
func fits(fs *flag.FlagSet, roles cloud.Roles) (err error) {
	for role, names := range flagsOf {
		if roles.Has(role) {
			continue
		}
		fs.Visit(func(f *flag.Flag) {
			if slices.Contains(names, f.Name) {
				err = fmt.Errorf("-%s is for role %v, and this process has -roles %v: leave it out here", f.Name, role, roles)
			}
		})
	}
	return err
}

func env(name, def string) string {
	if v, ok := os.LookupEnv(name); ok {
		return v
	}
	return def
}
