package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// maxFlying bounds the exchanges under way at once, so that a dead target does not pile up sockets.
const maxFlying = 2000

type sample struct {
	AtMs  int64  `json:"at_ms"`
	Error string `json:"error"`
}

// report is what one load saw. Every attempt ends in `answers` or in `errors`.
type report struct {
	OK        bool           `json:"ok"`
	Attempts  int            `json:"attempts"`
	Failed    int            `json:"failed"`
	Answers   map[string]int `json:"answers"`
	Errors    map[string]int `json:"errors"`
	Samples   []sample       `json:"samples"`
	P50Us     int64          `json:"p50_us"`
	P99Us     int64          `json:"p99_us"`
	MaxGapMs  int64          `json:"max_gap_ms"`
	latencies []int64
	last      time.Time
	start     time.Time
	lock      sync.Mutex
}

func newReport() *report {
	now := time.Now()
	return &report{OK: true, Answers: map[string]int{}, Errors: map[string]int{}, Samples: []sample{}, start: now, last: now}
}

func (r *report) add(began time.Time, body string, err error) {
	r.lock.Lock()
	defer r.lock.Unlock()
	now := time.Now()
	r.Attempts++
	if err != nil {
		r.Failed++
		r.Errors[errorKind(err)]++
		if len(r.Samples) < 10 {
			r.Samples = append(r.Samples, sample{began.Sub(r.start).Milliseconds(), err.Error()})
		}
		return
	}
	r.Answers[body]++
	r.latencies = append(r.latencies, now.Sub(began).Microseconds())
	r.MaxGapMs = max(r.MaxGapMs, now.Sub(r.last).Milliseconds())
	r.last = now
}

func (r *report) finish() *report {
	r.MaxGapMs = max(r.MaxGapMs, time.Since(r.last).Milliseconds())
	slices.Sort(r.latencies)
	if n := len(r.latencies); n > 0 {
		r.P50Us, r.P99Us = r.latencies[n/2], r.latencies[n*99/100]
	}
	return r
}

// runLoad makes `rate` exchanges a second, whether or not the earlier ones have ended (an open loop), until ctx ends.
func runLoad(ctx context.Context, req request) any {
	if req.Rate <= 0 || req.Rate > 2000 {
		return failure(fmt.Errorf("rate %d is not within 1..2000", req.Rate))
	}
	result := newReport()
	if req.Kind == "stream" || req.Kind == "udp-open" {
		keepOpen(ctx, req, result)
		return result.finish()
	}
	var flying sync.WaitGroup
	places := make(chan struct{}, maxFlying)
	ticker := time.NewTicker(time.Second / time.Duration(req.Rate))
	defer ticker.Stop()
	for next(ctx, ticker) {
		places <- struct{}{}
		flying.Go(func() {
			defer func() { <-places }()
			began := time.Now()
			body, err := exchange(req.Kind, req.Target, req.timeout())
			result.add(began, body, err)
		})
	}
	flying.Wait()
	return result.finish()
}

// next waits for the next tick; false means that ctx has ended, also when there is a tick as well.
func next(ctx context.Context, ticker *time.Ticker) bool {
	select {
	case <-ctx.Done():
		return false
	case <-ticker.C:
		return ctx.Err() == nil
	}
}

// keepOpen asks again and again over one socket. A broken stream counts once and is opened anew; an open UDP socket
// stays the same whatever happens.
func keepOpen(ctx context.Context, req request, result *report) {
	network := "tcp"
	if req.Kind == "udp-open" {
		network = "udp"
	}
	var conn net.Conn
	ticker := time.NewTicker(time.Second / time.Duration(req.Rate))
	defer ticker.Stop()
	for next(ctx, ticker) {
		began := time.Now()
		var err error
		if conn == nil {
			conn, err = net.DialTimeout(network, req.Target, req.timeout())
		}
		var body string
		if err == nil {
			body, err = ask(conn, req.timeout())
		}
		result.add(began, body, err)
		if err != nil && network == "tcp" && conn != nil {
			conn.Close()
			conn = nil
		}
	}
	if conn != nil {
		conn.Close()
	}
}
