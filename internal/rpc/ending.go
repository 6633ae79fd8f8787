package rpc

import (
	"io"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var (
	// errStopping ends streams when the server stops.
	errStopping = status.Error(codes.Unavailable, "the server is stopping")
	// errEnded says that the stream's handler has returned.
	errEnded = status.Error(codes.Canceled, "the stream has ended")
)

// endingStream lets a stream on which the caller sends end when the server stops.
// Such a stream is never finished by itself, and a handler that waits for its next
// message cannot be woken from outside; so the messages are received by a goroutine
// of the stream's own. To the handler it looks as if the caller sent no more, so that
// it answers what it has taken and returns. The caller gets errStopping, so that it
// does not take messages for received that were not.
type endingStream struct {
	grpc.ServerStream
	stopping <-chan struct{}
	done     chan struct{} // closed when the handler has returned
	wanted   chan any      // where the next message is to be put
	received chan error    // capacity 1; it is there, or why not
	ended    atomic.Bool
}

func newEndingStream(stream grpc.ServerStream, stopping <-chan struct{}) *endingStream {
	s := &endingStream{
		ServerStream: stream,
		stopping:     stopping,
		done:         make(chan struct{}),
		wanted:       make(chan any),
		received:     make(chan error, 1),
	}
	go s.receive()
	return s
}

func (s *endingStream) receive() {
	for {
		select {
		case m := <-s.wanted:
			s.received <- s.ServerStream.RecvMsg(m)
		case <-s.done:
			return
		}
	}
}

// close ends the goroutine. If it waits for a message, the library ends that once the
// handler has returned.
func (s *endingStream) close() { close(s.done) }

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
	select {
	case s.wanted <- m:
	case <-s.done: // somebody whom the handler has left behind
		return errEnded
	}
	select {
	case err := <-s.received:
		return err
	case <-s.done:
		return errEnded
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
