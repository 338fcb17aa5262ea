package netlab

import (
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	deviceName = "lab0"
	// deviceHeader is the size of the header that the kernel puts before each packet. It says
	// that a checksum is still to be computed, which the receiving kernel believes: both
	// save the work.
	deviceHeader = 10
	// deviceMTU is the largest packet, in bytes. Larger ones carry more a second.
	deviceMTU = 9000
	maxPacket = deviceHeader + deviceMTU
	// deviceQueue is how many packets wait in the kernel for the switch. The kernel drops what
	// does not fit.
	deviceQueue = 4096
)

// device is the network interface of a host as the switch sees it.
type device struct {
	file *os.File
	fd   int // of file, which stays open until nobody writes any more
}

// newDevice makes the interface in the namespace of the calling thread, brings it and the
// loopback up and gives it an address.
func newDevice(address netip.Prefix) (*device, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	if err := configure(fd, address); err != nil {
		unix.Close(fd)
		return nil, err
	}
	// Only now: a file without an interface can't be waited for.
	return &device{file: os.NewFile(uintptr(fd), "/dev/net/tun"), fd: fd}, nil
}

func configure(tun int, address netip.Prefix) error {
	control, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make a socket to set up interfaces: %w", err)
	}
	defer unix.Close(control)
	mask := netip.AddrFrom4([4]byte{255, 255, 255, 0})
	steps := []struct {
		what      string
		fd        int
		request   uint
		device    string
		parameter func(*unix.Ifreq) error
	}{
		{"make interface", tun, unix.TUNSETIFF, deviceName, short(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)},
		{"set the MTU of", control, unix.SIOCSIFMTU, deviceName, long(deviceMTU)},
		{"set the queue of", control, unix.SIOCSIFTXQLEN, deviceName, long(deviceQueue)},
		{"set the address of", control, unix.SIOCSIFADDR, deviceName, inet(address.Addr())},
		{"set the mask of", control, unix.SIOCSIFNETMASK, deviceName, inet(mask)},
		{"bring up", control, unix.SIOCSIFFLAGS, deviceName, short(unix.IFF_UP)},
		{"bring up", control, unix.SIOCSIFFLAGS, "lo", short(unix.IFF_UP)},
	}
	for _, step := range steps {
		request, err := unix.NewIfreq(step.device)
		if err == nil {
			err = step.parameter(request)
		}
		if err == nil {
			err = unix.IoctlIfreq(step.fd, step.request, request)
		}
		if err != nil {
			return fmt.Errorf("%s %s: %w", step.what, step.device, err)
		}
	}
	if err := unix.IoctlSetInt(tun, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM); err != nil {
		return fmt.Errorf("leave out the checksums of %s: %w", deviceName, err)
	}
	return nil
}

func short(value uint16) func(*unix.Ifreq) error {
	return func(request *unix.Ifreq) error { request.SetUint16(value); return nil }
}

func long(value uint32) func(*unix.Ifreq) error {
	return func(request *unix.Ifreq) error { request.SetUint32(value); return nil }
}

func inet(address netip.Addr) func(*unix.Ifreq) error {
	return func(request *unix.Ifreq) error { return request.SetInet4Addr(address.AsSlice()) }
}

// read waits for a packet that the host sends and returns its size. It fails after stop.
func (d *device) read(packet []byte) (int, error) { return d.file.Read(packet) }

// write hands the host a packet. It never waits; false says that the packet was not taken.
func (d *device) write(packet []byte) bool {
	for {
		_, err := unix.Write(d.fd, packet)
		if err != unix.EINTR {
			return err == nil
		}
	}
}

// stop ends read. An interface can always be waited for, so there is no error.
func (d *device) stop() { _ = d.file.SetReadDeadline(time.Unix(1, 0)) }

func (d *device) close() { d.file.Close() }
