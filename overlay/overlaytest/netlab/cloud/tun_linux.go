package cloud

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// vnetHeader is the size of struct virtio_net_hdr, which stands before every
// packet and says what is left undone in it: checksum and segmentation. The
// other interface takes it as it is.
const vnetHeader = 10

// Offloads that golang.org/x/sys does not name; from linux/if_tun.h.
const (
	tunCsum = 0x01
	tunTSO4 = 0x02
	tunUSO4 = 0x20
	tunUSO6 = 0x40 // the kernel wants both or none
)

// tun makes an interface of IP packets and returns its other side. With offload
// the kernel hands over up to 64 KiB of a TCP stream, or of datagrams that were
// written together, at once: several times the throughput.
func tun(enter func(func() error) error, device string, offload bool) (file *os.File, err error) {
	err = enter(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		if err := configure(fd, device, offload); err != nil {
			return errors.Join(fmt.Errorf("make interface: %w", err), unix.Close(fd))
		}
		file = os.NewFile(uintptr(fd), "tun") // polled, so only now that there is something to poll
		return nil
	})
	return file, err
}

func configure(fd int, device string, offload bool) error {
	request, err := unix.NewIfreq(device)
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil || !offload {
		return err
	}
	const tcp = tunCsum | tunTSO4
	if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp|tunUSO4|tunUSO6) == nil {
		return nil
	}
	return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp) // before Linux 6.2
}
