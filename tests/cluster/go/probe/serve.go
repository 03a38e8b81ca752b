package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

// serve answers until it is told to stop, then ends the requests under way and returns.
func serve(httpAddr, udpAddr, linesAddr string, stop <-chan os.Signal) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/hostname", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) })
	mux.HandleFunc("/client", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RemoteAddr) })
	listener, err := net.Listen("tcp", httpAddr)
	if err != nil {
		return err
	}
	datagrams, err := net.ListenPacket("udp", udpAddr)
	if err != nil {
		return err
	}
	lines, err := net.Listen("tcp", linesAddr)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 3)
	go func() { failed <- server.Serve(listener) }()
	go func() { failed <- answerDatagrams(datagrams, name) }()
	go func() { failed <- answerLines(lines, name) }()
	fmt.Println("serving as", name)
	select {
	case err := <-failed:
		return err
	case <-stop:
	}
	fmt.Println("stopping")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return server.Shutdown(ctx)
}

func answerDatagrams(socket net.PacketConn, name string) error {
	buffer := make([]byte, 2048)
	for {
		_, peer, err := socket.ReadFrom(buffer)
		if err != nil {
			return err
		}
		if _, err := socket.WriteTo([]byte(name), peer); err != nil {
			fmt.Fprintln(os.Stderr, "answer datagram:", err)
		}
	}
}

func answerLines(listener net.Listener, name string) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			in := bufio.NewScanner(conn)
			for in.Scan() {
				if _, err := fmt.Fprintln(conn, name); err != nil {
					return
				}
			}
		}()
	}
}
