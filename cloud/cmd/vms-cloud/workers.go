package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/zipato/vms/cloud"
)

const workersUsage = `usage: vms-cloud workers [flags]
       vms-cloud workers [flags] drain ID

Lists the workers of the running cloud, or drains one: it takes no streams any
more, those that it has are moved to others, and a worker that is a process of
its own ends when it has none.

`

// workers is the command of this name.
func workers(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("vms-cloud workers", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprint(stderr, workersUsage)
		fs.PrintDefaults()
	}
	data := fs.String("data", env("VMS_DATA", "data"), "data directory of the cloud, which has its token (VMS_DATA)")
	url := fs.String("url", env("VMS_PUBLIC_URL", "http://"+env("VMS_LISTEN", "127.0.0.1:8080")), "URL of the running cloud (VMS_PUBLIC_URL, or else VMS_LISTEN)")
	asJSON := fs.Bool("json", false, "print what the API answers")
	if err := fs.Parse(args); err != nil {
		return err
	}
	drain := fs.Arg(0) == "drain"
	if drain {
		if err := fs.Parse(fs.Args()[1:]); err != nil { // flags may also stand behind it
			return err
		}
		if fs.NArg() != 1 {
			fs.Usage()
			return errors.New("say which worker is to drain")
		}
		w, err := cloud.DrainWorker(ctx, *url, *data, fs.Arg(0))
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(stdout, w)
		}
		_, err = fmt.Fprintf(stdout, "%s drains; %d of its streams are still to be moved\n", w.ID, w.Assigned)
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("%q is nothing that can be done with workers; want drain, or nothing for the list", fs.Arg(0))
	}
	list, err := cloud.Workers(ctx, *url, *data)
	if err != nil {
		return err
	}
	if *asJSON {
		return printJSON(stdout, list)
	}
	return printWorkers(stdout, list)
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func printWorkers(out io.Writer, list cloud.WorkerList) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "WORKER\tSTATE\tZONE\tSTREAMS\tVIEWERS\tMBIT/S\tTMPFS\tLAG\tUPLOADS\tVERSION\tHEARD")
	up := 0
	for _, w := range list.Workers {
		state, l := w.State, w.Load
		if state == "up" {
			up++
			if l.Overloaded {
				state = "overloaded"
			}
		}
		zone := w.Zone
		if zone == "" {
			zone = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%d\t%s\t%s ago\n", w.ID, state, zone,
			of(float64(w.Assigned), float64(w.Capacity.Streams), "%.0f"), l.Viewers,
			of(float64(l.BytesPerSecond)*8/1e6, float64(w.Capacity.BytesPerSecond)*8/1e6, "%.1f"),
			share(l.TmpfsBytes, l.TmpfsLimit), (time.Duration(l.LagMS) * time.Millisecond).Round(time.Second), l.UploadsWaiting,
			w.Version, max(0, time.Since(w.SeenAt.Time)).Round(time.Second))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "%d up, %d wanted\n", up, list.Wanted)
	return err
}

// of writes a number, and its limit if there is one.
func of(n, limit float64, format string) string {
	if limit == 0 {
		return fmt.Sprintf(format, n)
	}
	return fmt.Sprintf(format+"/"+format, n, limit)
}

func share(n, of int64) string {
	if of == 0 {
		return "-"
	}
	return fmt.Sprintf("%d%%", n*100/of)
}
