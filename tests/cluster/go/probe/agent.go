package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// request is one line of JSON from the test; the answer is one line of JSON.
type request struct {
	Op        string `json:"op"`
	Target    string `json:"target"`
	Kind      string `json:"kind"`
	Server    string `json:"server"`
	TimeoutMs int    `json:"timeout_ms"`
	Rate      int    `json:"rate"`
}

type reply struct {
	OK      bool     `json:"ok"`
	Body    string   `json:"body,omitempty"`
	Answers []string `json:"answers,omitempty"`
	Error   string   `json:"error,omitempty"`
	Kind    string   `json:"kind,omitempty"`
}

// agent serves requests on a unix socket, which a test reaches by its path, whatever network the agent is in.
func agent(path string, stop <-chan os.Signal) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go func() {
		<-stop
		os.Exit(0)
	}()
	fmt.Println("agent on", path)
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go handle(conn)
	}
}

func handle(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return
	}
	var req request
	var answer any
	if err := json.Unmarshal(line, &req); err != nil {
		answer = failure(err)
	} else {
		answer = req.perform(in)
	}
	if err := json.NewEncoder(conn).Encode(answer); err != nil {
		fmt.Fprintln(os.Stderr, "answer request:", err)
	}
}

func (req request) timeout() time.Duration {
	if req.TimeoutMs <= 0 {
		return 2 * time.Second
	}
	return time.Duration(req.TimeoutMs) * time.Millisecond
}

func (req request) perform(in *bufio.Reader) any {
	switch req.Op {
	case "ping":
		return reply{OK: true}
	case "once":
		body, err := exchange(req.Kind, req.Target, req.timeout())
		if err != nil {
			return failure(err)
		}
		return reply{OK: true, Body: body}
	case "lookup":
		return req.lookup()
	case "load":
		// The load runs until the test sends another line, or goes away.
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			defer cancel()
			_, _ = in.ReadBytes('\n')
		}()
		return runLoad(ctx, req)
	default:
		return failure(fmt.Errorf("unknown operation %q", req.Op))
	}
}

// lookup resolves a name with the resolv.conf of the pod, or with the given server.
func (req request) lookup() reply {
	ctx, cancel := context.WithTimeout(context.Background(), req.timeout())
	defer cancel()
	resolver := &net.Resolver{PreferGo: true}
	if req.Server != "" {
		resolver.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, req.Server)
		}
	}
	answers, err := resolve(ctx, resolver, req.Kind, req.Target)
	if err != nil {
		return failure(err)
	}
	return reply{OK: true, Answers: answers}
}

func resolve(ctx context.Context, resolver *net.Resolver, kind, name string) ([]string, error) {
	var answers []string
	switch kind {
	case "A", "AAAA":
		network := "ip4"
		if kind == "AAAA" {
			network = "ip6"
		}
		addrs, err := resolver.LookupNetIP(ctx, network, name)
		for _, addr := range addrs {
			answers = append(answers, addr.String())
		}
		return answers, err
	case "SRV":
		_, records, err := resolver.LookupSRV(ctx, "", "", name)
		for _, srv := range records {
			answers = append(answers, fmt.Sprintf("%d %s", srv.Port, srv.Target))
		}
		return answers, err
	case "PTR":
		return resolver.LookupAddr(ctx, name)
	default:
		return nil, fmt.Errorf("unknown record type %q", kind)
	}
}

func failure(err error) reply {
	return reply{Error: err.Error(), Kind: errorKind(err)}
}
