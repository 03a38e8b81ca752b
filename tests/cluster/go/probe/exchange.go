package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
)

// exchange makes one fresh connection (or socket) to target, asks who answers, and closes it.
func exchange(kind, target string, timeout time.Duration) (string, error) {
	switch kind {
	case "http":
		return get(target, timeout)
	case "udp":
		conn, err := net.DialTimeout("udp", target, timeout)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		return ask(conn, timeout)
	case "connect":
		conn, err := net.DialTimeout("tcp", target, timeout)
		if err != nil {
			return "", err
		}
		return "", conn.Close()
	default:
		return "", fmt.Errorf("unknown kind %q", kind)
	}
}

func get(url string, timeout time.Duration) (string, error) {
	if !strings.HasPrefix(url, "http://") {
		url = "http://" + url + "/hostname"
	}
	client := &http.Client{Timeout: timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return string(body), fmt.Errorf("status %s", response.Status)
	}
	return string(body), nil
}

// ask sends one line (or datagram) on an open connection and returns the answer.
func ask(conn net.Conn, timeout time.Duration) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte("who\n")); err != nil {
		return "", err
	}
	buffer := make([]byte, 2048)
	n, err := conn.Read(buffer)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(buffer[:n])), nil
}

// errorKind sorts an error by what the network did.
func errorKind(err error) string {
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return "not-found"
	case errors.As(err, &dns):
		return "dns"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.EPERM):
		return "denied"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF):
		return "reset"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "unreachable"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	default:
		return "other"
	}
}
