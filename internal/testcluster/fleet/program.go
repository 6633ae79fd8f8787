package fleet

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// stopTimeout is how long a program may take to end when it is asked to.
const stopTimeout = time.Minute

var (
	errRunning = errors.New("it is running already")
	errStopped = errors.New("it is not running")
)

// ErrHangs says that a program did not stop in time. It was made to show its goroutines.
var ErrHangs = errors.New("it did not stop in time and was made to show its goroutines")

// NewProgram returns a Program that writes to output. env is added to that of this
// process.
func NewProgram(output io.Writer, env []string, command ...string) *Program {
	return &Program{command: command, env: env, output: output}
}

// Program is a command that can be started, killed and started again. It is safe for
// concurrent use.
type Program struct {
	command []string
	env     []string // beside that of this process
	output  io.Writer

	mu  sync.Mutex
	run *run // nil while nothing runs
}

// run is one run of a program.
type run struct {
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // how it ended; set before ended is closed
}

// Start starts the program, which must not be running, and does not wait.
func (p *Program) Start() error { return p.start() }

func (p *Program) start(flags ...string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run != nil {
		return errRunning
	}
	r := &run{cmd: exec.Command(p.command[0], append(p.command[1:len(p.command):len(p.command)], flags...)...), ended: make(chan struct{})}
	r.cmd.Env = append(os.Environ(), p.env...)
	r.cmd.Stdout, r.cmd.Stderr = p.output, p.output
	// What interrupts this process is not for its programs: they are stopped in order.
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := r.cmd.Start(); err != nil {
		return err
	}
	p.run = r
	go func() {
		r.err = r.cmd.Wait()
		close(r.ended)
	}()
	return nil
}

// take returns what runs and forgets it; nil if nothing does.
func (p *Program) take() *run {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.run
	p.run = nil
	return r
}

// current returns what runs, or nil.
func (p *Program) current() *run {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.run
}

// Kill ends the program with SIGKILL.
func (p *Program) Kill() error {
	r := p.take()
	if r == nil {
		return errStopped
	}
	err := r.cmd.Process.Kill()
	<-r.ended
	return err
}

// Stop ends the program with SIGTERM and returns how it ended.
func (p *Program) Stop() error {
	r := p.take()
	if r == nil {
		return errStopped
	}
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	select {
	case <-r.ended:
		return r.err
	case <-timeout.C:
		// What its goroutines do is what one wants to know now.
		err := r.cmd.Process.Signal(syscall.SIGQUIT)
		<-r.ended
		return errors.Join(ErrHangs, err)
	}
}

// Alive returns an error if the program does not run, with how it ended.
func (p *Program) Alive() error {
	r := p.current()
	if r == nil {
		return errStopped
	}
	select {
	case <-r.ended:
		return fmt.Errorf("it ended by itself: %w", r.err)
	default:
		return nil
	}
}

// PID returns the process's id, or 0.
func (p *Program) PID() int {
	if r := p.current(); r != nil {
		return r.cmd.Process.Pid
	}
	return 0
}
