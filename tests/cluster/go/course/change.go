package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"
)

// patience is how long one connection may take: what is not programmed yet goes to nowhere.
const patience = 50 * time.Millisecond

type changes struct {
	samples, churn, services, endpoints int
	gap, deadline                       time.Duration
}

type figures struct {
	// Milliseconds from the write at the API server, before it is sent, to the first answer of the new endpoint.
	Milliseconds []float64 `json:"milliseconds"`
	// Connections that nobody answered between the first change and the last.
	Refused int `json:"refused"`
	Tried   int `json:"tried"`
	// Changes of other Services that were made meanwhile.
	Churned int `json:"churned"`
}

// ask returns which endpoint of a Service answered.
func ask(index int) (string, error) {
	address := net.JoinHostPort(clusterIP(index), strconv.Itoa(port))
	connection, err := net.DialTimeout("tcp4", address, patience)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(connection)
	return string(answer), err
}

// await returns when 64 Services, spread over all, and the last ones of them answer.
func await(services int, deadline time.Duration) error {
	end := time.Now().Add(deadline)
	wanted := []int{probeIndex}
	for place := range 64 {
		wanted = append(wanted, place*services/64, max(0, services-1-place))
	}
	for _, index := range wanted {
		for {
			_, err := ask(index)
			if err == nil {
				break
			}
			if time.Now().After(end) {
				return fmt.Errorf("%s does not answer: %w", clusterIP(index), err)
			}
			time.Sleep(2 * time.Millisecond)
		}
	}
	return nil
}

// change times changes of the one endpoint of the probe's Service.
func change(api *client, plan changes) (*figures, error) {
	out := &figures{Milliseconds: []float64{}}
	stop := make(chan struct{})
	var churners sync.WaitGroup
	var failure error
	if plan.churn > 0 {
		churners.Go(func() { out.Churned, failure = churn(api, plan, stop) })
	}
	place := rand.IntN(8)
	for range plan.samples {
		time.Sleep(plan.gap + rand.N(plan.gap/2))
		place = (place + 1 + rand.IntN(6)) % 8
		took, err := out.one(api, place, plan.deadline)
		if err != nil {
			return nil, err
		}
		out.Milliseconds = append(out.Milliseconds, float64(took.Microseconds())/1000)
	}
	close(stop)
	churners.Wait()
	return out, failure
}

func (f *figures) one(api *client, place int, deadline time.Duration) (time.Duration, error) {
	wanted := endpointIP(probeIndex, place)
	answered := make(chan error, 1)
	start := time.Now()
	go func() {
		_, err := api.call("PUT", slices+"/"+name(probeIndex), slice(probeIndex, place, 1))
		answered <- err
	}()
	for {
		f.Tried++
		found, err := ask(probeIndex)
		if err != nil {
			f.Refused++
		}
		if found == wanted {
			return time.Since(start), <-answered
		}
		if time.Since(start) > deadline {
			return 0, fmt.Errorf("not changed to %s: %q, %w", wanted, found, err)
		}
		time.Sleep(time.Millisecond)
	}
}

// churn changes one endpoint of other Services, evenly in time, until it is told to stop.
func churn(api *client, plan changes, stop chan struct{}) (int, error) {
	ticker := time.NewTicker(time.Second / time.Duration(plan.churn))
	defer ticker.Stop()
	for count := 0; ; count++ {
		select {
		case <-stop:
			return count, nil
		case <-ticker.C:
		}
		index := rand.IntN(plan.services)
		if _, err := api.call("PUT", slices+"/"+name(index), slice(index, rand.IntN(3), plan.endpoints)); err != nil {
			return count, err
		}
	}
}
