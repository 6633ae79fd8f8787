package faults

import (
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/testcluster/fleet"
)

// gateway is this side's address in the network that connects the zones.
const gateway = "10.213.77.1"

// bridge is the switch of that network. Its name is this process's own: one that was
// killed may have left its.
var bridge = fmt.Sprintf("hf%d", os.Getpid())

// A zone is cut off from all others, which have a network namespace each, and comes
// back. Off loopback the members need a secret, by which all they say is encrypted.
func TestAZoneThatIsCutOffAndComesBack(t *testing.T) {
	t.Parallel()
	zones := newNetwork(t, "a", "b", "c")
	secret := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(secret, []byte(rand.Text()), 0o600))
	b := newBed(t, options{
		zones: []string{"a", "b", "c"},
		yaml:  fmt.Sprintf("auth: {mode: none}\ncluster: {secret_file: %q}\n", secret),
		host:  zones.host,
		store: gateway,
	})
	l := startLoad(t, b.url, nil)
	w := startWatch(t, b.url, l)

	zones.connect(t, "c", false)
	l.goesOn(5 * settled)
	w.clean()
	zones.connect(t, "c", true)
	b.awaitWhole(t)
	l.goesOn(settled)

	// What the zone has missed, the others have.
	zones.connect(t, "a", false)
	l.goesOn(5 * settled)
	w.clean()
	zones.connect(t, "a", true)
	b.awaitWhole(t)
	l.verified()
	w.clean()
}

// network is a namespace for each zone, connected by a bridge to this one.
type network struct{ zones []string }

func newNetwork(t testing.TB, zones ...string) *network {
	t.Helper()
	if out, err := exec.Command("ip", "link", "add", bridge, "type", "bridge").CombinedOutput(); err != nil {
		t.Skipf("this needs the right to make network namespaces: %v: %s", err, out)
	}
	n := &network{zones: zones}
	t.Cleanup(n.remove)
	ip(t, "addr", "add", gateway+"/24", "dev", bridge)
	ip(t, "link", "set", bridge, "up")
	for _, zone := range zones {
		ip(t, "netns", "add", namespace(zone))
		ip(t, "link", "add", link(zone), "type", "veth", "peer", "name", "eth0", "netns", namespace(zone))
		ip(t, "link", "set", link(zone), "master", bridge, "up")
		ip(t, "-n", namespace(zone), "addr", "add", n.address(zone)+"/24", "dev", "eth0")
		ip(t, "-n", namespace(zone), "link", "set", "eth0", "up")
		ip(t, "-n", namespace(zone), "link", "set", "lo", "up")
	}
	return n
}

func namespace(zone string) string { return bridge + zone }
func link(zone string) string      { return bridge + zone }

func (n *network) address(zone string) string {
	for i := range n.zones {
		if n.zones[i] == zone {
			return strings.TrimSuffix(gateway, "1") + fmt.Sprint(10+i)
		}
	}
	panic("BUG: no such zone: " + zone)
}

// host places ingesters in their zones, and the others on the bridge's side.
func (n *network) host(_, zone string) fleet.Host {
	if zone == "" {
		return fleet.Host{IP: gateway}
	}
	return fleet.Host{IP: n.address(zone), Fixed: true, Wrapper: []string{"ip", "netns", "exec", namespace(zone)}}
}

// connect connects a zone with the others or cuts it off.
func (n *network) connect(t testing.TB, zone string, on bool) {
	t.Helper()
	state := map[bool]string{true: "up", false: "down"}[on]
	ip(t, "link", "set", link(zone), state)
}

// remove removes everything; what is not there is no error.
func (n *network) remove() {
	for _, zone := range n.zones {
		_ = exec.Command("ip", "netns", "del", namespace(zone)).Run()
	}
	_ = exec.Command("ip", "link", "del", bridge).Run()
}

func ip(t testing.TB, args ...string) {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	require.NoErrorf(t, err, "ip %s: %s", strings.Join(args, " "), out)
}
