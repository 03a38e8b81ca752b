package main

import (
	"fmt"
	"sync"
)

const (
	port = 80
	// The Service whose changes are timed is behind all others.
	probeIndex = 60000
)

// clusterIP is the address of a Service: 10.96.0.0/16 without the first 256.
func clusterIP(index int) string {
	number := index + 256
	return fmt.Sprintf("10.96.%d.%d", number>>8&0xff, number&0xff)
}

// endpointIP is an address of 172.20.0.0/14; each Service has room for twelve.
func endpointIP(index, place int) string {
	number := (index*12 + place) & 0x3ffff
	return fmt.Sprintf("172.%d.%d.%d", 20+number>>16&3, number>>8&0xff, number&0xff)
}

func name(index int) string { return fmt.Sprintf("bench-%05d", index) }

func service(index int) object {
	return object{
		"apiVersion": "v1", "kind": "Service",
		"metadata": object{"name": name(index)},
		"spec": object{
			"clusterIP": clusterIP(index),
			"ports":     []object{{"name": "web", "port": port, "targetPort": 8080, "protocol": "TCP"}},
		},
	}
}

// slice has `count` endpoints from place `first` on.
func slice(index, first, count int) object {
	var endpoints []object
	for place := first; place < first+count; place++ {
		endpoints = append(endpoints, object{
			"addresses":  []string{endpointIP(index, place)},
			"conditions": object{"ready": true, "serving": true, "terminating": false},
			"nodeName":   fmt.Sprintf("far-%d", place),
			"targetRef":  object{"kind": "Pod", "namespace": "default", "name": fmt.Sprintf("%s-%d", name(index), place)},
		})
	}
	return object{
		"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
		"metadata": object{
			"name":   name(index),
			"labels": object{"kubernetes.io/service-name": name(index)},
		},
		"endpoints": endpoints,
		"ports":     []object{{"name": "web", "port": 8080, "protocol": "TCP"}},
	}
}

// load makes the Services from `from` to behind `to`, and that whose changes are timed.
func load(api *client, from, to, endpoints int) error {
	if from == 0 {
		if err := create(api, probeIndex, 1); err != nil {
			return err
		}
	}
	indexes, failures := make(chan int), make(chan error, 1)
	var workers sync.WaitGroup
	for range 16 {
		workers.Go(func() {
			for index := range indexes {
				if err := create(api, index, endpoints); err != nil {
					select {
					case failures <- err:
					default:
					}
				}
			}
		})
	}
	for index := from; index < to; index++ {
		indexes <- index
	}
	close(indexes)
	workers.Wait()
	select {
	case err := <-failures:
		return err
	default:
		return nil
	}
}

func create(api *client, index, endpoints int) error {
	if _, err := api.call("POST", services, service(index)); err != nil {
		return err
	}
	_, err := api.call("POST", slices, slice(index, 0, endpoints))
	return err
}
