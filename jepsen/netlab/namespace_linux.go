package netlab

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace, kept alive by an open file alone.
type namespace struct {
	file *os.File
	home *namespace // where threads go back to
}

// currentNamespace returns the namespace of the calling thread.
func currentNamespace() (*namespace, error) {
	file, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	return &namespace{file: file}, nil
}

// child makes a namespace and calls setUp on a thread in it. The child's home is s.
func (s *namespace) child(setUp func() error) (*namespace, error) {
	var made *namespace
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace (only root may): %w", err)
		}
		current, err := currentNamespace()
		if err != nil {
			return err
		}
		if err := setUp(); err != nil {
			current.close()
			return err
		}
		made = current
		made.home = s
		return nil
	}, s.enter)
	return made, err
}

// do calls f on a thread that is in the namespace.
func (s *namespace) do(f func() error) error {
	return onThread(func() error {
		if err := s.enter(); err != nil {
			return err
		}
		return f()
	}, s.home.enter)
}

// enter moves the calling thread.
func (s *namespace) enter() error {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return err
	}
	var entered error
	if err := raw.Control(func(fd uintptr) { entered = unix.Setns(int(fd), unix.CLONE_NEWNET) }); err != nil {
		return ErrClosed // Control fails for no other reason
	}
	return os.NewSyscallError("setns", entered)
}

// onThread calls f on a thread of its own, then restore on the same. A thread that could not
// be restored ends with its goroutine, so no other ever runs on it.
func onThread(f, restore func() error) error {
	result := make(chan error, 1)
	go func() { // the caller waits for it
		err := errors.New("the function ended its goroutine")
		defer func() { result <- err }()
		runtime.LockOSThread()
		err = f()
		if restore() == nil {
			runtime.UnlockOSThread()
		}
	}()
	return <-result
}

// adopt puts a new socket of the namespace in the place of one that was made elsewhere, of
// the same kind, and is neither bound nor connected. It is a net.Dialer's Control.
func (s *namespace) adopt(_, _ string, raw syscall.RawConn) error {
	var adopted error
	err := raw.Control(func(fd uintptr) { adopted = s.replaceSocket(int(fd)) })
	return errors.Join(err, adopted)
}

func (s *namespace) replaceSocket(fd int) error {
	var kind [3]int
	for i, option := range []int{unix.SO_DOMAIN, unix.SO_TYPE, unix.SO_PROTOCOL} {
		value, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option)
		if err != nil {
			return os.NewSyscallError("getsockopt", err)
		}
		kind[i] = value
	}
	replacement := -1
	err := s.do(func() error {
		var err error
		replacement, err = unix.Socket(kind[0], kind[1]|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, kind[2])
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return err
	}
	defer unix.Close(replacement)
	return os.NewSyscallError("dup3", unix.Dup3(replacement, fd, unix.O_CLOEXEC))
}

func (s *namespace) close() { s.file.Close() }
