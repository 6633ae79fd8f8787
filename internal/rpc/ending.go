package rpc

import (
	"io"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errStopping ends streams when the server stops.
var errStopping = status.Error(codes.Unavailable, "the server is stopping")

// endingStream lets a stream on which the caller sends end when the server stops.
// Such a stream is never finished by itself, and a handler that waits for its next
// message cannot be woken from outside; so the messages are received by a goroutine
// of the stream's own. To the handler it looks as if the caller sent no more, so that
// it answers what it has taken and returns. The caller gets errStopping, so that it
// does not take messages for received that were not.
type endingStream struct {
	grpc.ServerStream
	stopping <-chan struct{}
	wanted   chan any   // where the next message is to be put
	received chan error // capacity 1; it is there, or why not
	ended    atomic.Bool
}

func newEndingStream(stream grpc.ServerStream, stopping <-chan struct{}) *endingStream {
	s := &endingStream{ServerStream: stream, stopping: stopping, wanted: make(chan any), received: make(chan error, 1)}
	go func() {
		for m := range s.wanted {
			s.received <- stream.RecvMsg(m)
		}
	}()
	return s
}

// close ends the goroutine, at the latest when the handler has returned: then the
// library ends what waits for a message.
func (s *endingStream) close() { close(s.wanted) }

// RecvMsg implements grpc.ServerStream. After io.EOF m must not be touched.
func (s *endingStream) RecvMsg(m any) error {
	select {
	case <-s.stopping:
		s.ended.Store(true)
	default:
	}
	if s.ended.Load() {
		return io.EOF
	}
	s.wanted <- m
	select {
	case err := <-s.received:
		return err
	case <-s.stopping:
	}
	select {
	case err := <-s.received: // what has come is answered
		return err
	default:
		s.ended.Store(true)
		return io.EOF
	}
}
