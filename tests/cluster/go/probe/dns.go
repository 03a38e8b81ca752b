package main

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"strings"
)

// The one name the server outside the cluster knows, and its address (RFC 5737).
const (
	outsideName    = "outside.test."
	outsideAddress = "203.0.113.7"
)

// serveDNS is a name server outside the cluster, for names that are not the cluster's (RFC 1035, UDP, one question).
func serveDNS(addr string, stop <-chan os.Signal) error {
	socket, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	go func() {
		<-stop
		os.Exit(0)
	}()
	buffer := make([]byte, 1500)
	for {
		n, peer, err := socket.ReadFrom(buffer)
		if err != nil {
			return err
		}
		if answer, err := answerQuery(buffer[:n]); err == nil {
			if _, err := socket.WriteTo(answer, peer); err != nil {
				return err
			}
		}
	}
}

const (
	headerLength = 12
	typeA        = 1
	classIN      = 1
	// QR, AA, RD, RA.
	flagsAnswer = 0x8580
	codeNoName  = 3
)

func answerQuery(query []byte) ([]byte, error) {
	name, rest, err := parseQuestion(query)
	if err != nil {
		return nil, err
	}
	question := query[headerLength : len(query)-len(rest)]
	kind := binary.BigEndian.Uint16(question[len(question)-4:])
	flags, answers := uint16(flagsAnswer), uint16(0)
	var record []byte
	switch {
	case name != outsideName:
		flags |= codeNoName
	case kind == typeA:
		answers = 1
		// A pointer to the name of the question, type, class, 60 s, four bytes.
		record = append(record, 0xc0, headerLength, 0, typeA, 0, classIN, 0, 0, 0, 60, 0, 4)
		record = append(record, net.ParseIP(outsideAddress).To4()...)
	}
	reply := append([]byte{}, query[:2]...)
	for _, field := range []uint16{flags, 1, answers, 0, 0} {
		reply = binary.BigEndian.AppendUint16(reply, field)
	}
	return append(append(reply, question...), record...), nil
}

// parseQuestion returns the lower-case name of the first question and what follows the question.
func parseQuestion(query []byte) (string, []byte, error) {
	bad := errors.New("malformed query")
	if len(query) < headerLength {
		return "", nil, bad
	}
	var name strings.Builder
	rest := query[headerLength:]
	for {
		if len(rest) == 0 || int(rest[0]) >= len(rest) || rest[0] > 63 {
			return "", nil, bad
		}
		length := int(rest[0])
		label := rest[1 : 1+length]
		rest = rest[1+length:]
		if length == 0 {
			break
		}
		name.WriteString(strings.ToLower(string(label)) + ".")
	}
	if len(rest) < 4 {
		return "", nil, bad
	}
	return name.String(), rest[4:], nil
}
