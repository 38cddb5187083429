package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/zipato/vms/cloud"
)

const mosquittoUsage = `usage: vms-cloud mosquitto [flags] passwords|acl

Prints the password file or the ACL of a Mosquitto that serves this cloud's hubs
(-mqtt-url): who they are, and that each may touch its own topics only. The hubs
are those of the running cloud, or of -hubs.

`

// mosquitto is the command of this name.
func mosquitto(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("vms-cloud mosquitto", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprint(stderr, mosquittoUsage)
		fs.PrintDefaults()
	}
	data := fs.String("data", env("VMS_DATA", "data"), "data directory of the cloud (VMS_DATA)")
	url := fs.String("url", env("VMS_PUBLIC_URL", "http://"+env("VMS_LISTEN", "127.0.0.1:8080")), "URL of the running cloud (VMS_PUBLIC_URL, or else VMS_LISTEN)")
	file := fs.String("hubs", "", "file with ids of hubs, one on a line, instead of asking the cloud; - is standard input")
	if err := fs.Parse(args); err != nil {
		return err
	}
	var out []byte
	switch what := strings.Join(fs.Args(), " "); what {
	case "acl":
		out = []byte(cloud.MosquittoACL)
	case "passwords":
		var hubs []string
		var err error
		if *file != "" {
			hubs, err = readHubs(*file)
		} else {
			hubs, err = cloud.HubIDs(ctx, *url, *data)
		}
		if err != nil {
			return err
		}
		if out, err = cloud.MosquittoPasswords(*data, hubs); err != nil {
			return err
		}
	case "":
		fs.Usage()
		return errors.New("say what to print: passwords or acl")
	default:
		return fmt.Errorf("%q is nothing that it prints; want passwords or acl", what)
	}
	_, err := stdout.Write(out)
	return err
}

func readHubs(name string) (hubs []string, err error) {
	f := os.Stdin
	if name != "-" {
		if f, err = os.Open(name); err != nil {
			return nil, err
		}
		defer f.Close()
	}
	s := bufio.NewScanner(f)
	for s.Scan() {
		if id := strings.TrimSpace(s.Text()); id != "" {
			hubs = append(hubs, id)
		}
	}
	return hubs, s.Err()
}
