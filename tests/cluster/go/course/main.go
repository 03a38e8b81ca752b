// Command course loads a cluster with Services and measures how soon a change of one reaches a node.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "course:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: course load|serve|await|change [flags]")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	kubeconfig := flags.String("kubeconfig", "", "how the API server is reached")
	from := flags.Int("from", 0, "first Service")
	to := flags.Int("to", 0, "Service behind the last")
	endpoints := flags.Int("endpoints", 10, "endpoints of a Service")
	samples := flags.Int("samples", 30, "changes that are timed")
	gap := flags.Duration("gap", time.Second, "time between two of them; up to half of it is added at random")
	churn := flags.Int("churn", 0, "changes of other Services a second meanwhile")
	address := flags.String("address", "", "address to listen on")
	deadline := flags.Duration("deadline", time.Minute, "how long to wait for one change")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if args[0] == "serve" {
		return serve(*address)
	}
	api, err := connect(*kubeconfig)
	if err != nil {
		return err
	}
	switch args[0] {
	case "load":
		return load(api, *from, *to, *endpoints)
	case "await":
		return await(*to, *deadline)
	case "change":
		figures, err := change(api, changes{
			samples: *samples, gap: *gap, churn: *churn, services: *to, endpoints: *endpoints, deadline: *deadline,
		})
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(figures)
	default:
		return fmt.Errorf("unknown command %q", args[0])
	}
}

// serve tells every client which address it reached.
func serve(address string) error {
	listener, err := net.Listen("tcp4", address)
	if err != nil {
		return err
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			return err
		}
		host, _, _ := net.SplitHostPort(client.LocalAddr().String())
		// A client that has gone away is no matter.
		_, _ = client.Write([]byte(host))
		_ = client.Close()
	}
}
