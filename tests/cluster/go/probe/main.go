// Command probe is what runs in the pods of the test cluster, and in the namespaces around it: a server that tells who it
// is, and an agent that makes connections on request and counts the failures.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: probe pause|serve|agent|dns|get [flags]")
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	switch args[0] {
	case "pause":
		<-stop
		return nil
	case "serve":
		flags := flag.NewFlagSet("serve", flag.ContinueOnError)
		http := flags.String("http", ":8080", "HTTP address")
		udp := flags.String("udp", ":8080", "UDP address, each datagram is answered with the host name")
		lines := flags.String("lines", ":8081", "TCP address, each line is answered with the host name")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return serve(*http, *udp, *lines, stop)
	case "agent":
		flags := flag.NewFlagSet("agent", flag.ContinueOnError)
		socket := flags.String("socket", "", "unix socket requests are taken from")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return agent(*socket, stop)
	case "get":
		if len(args) != 2 {
			return errors.New("usage: probe get URL")
		}
		body, err := get(args[1], 3*time.Second)
		fmt.Println(body)
		return err
	case "dns":
		flags := flag.NewFlagSet("dns", flag.ContinueOnError)
		listen := flags.String("listen", ":53", "UDP address")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return serveDNS(*listen, stop)
	default:
		return fmt.Errorf("unknown command %q", args[0])
	}
}
