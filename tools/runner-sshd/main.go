// The SSH server of a runner: one user, commands, terminals and unix sockets, nothing else.
//
//	runner-sshd ADDRESS:PORT
//
// It is started before a template is frozen, as the user that it serves, and waits; a clone's agent
// then writes who it is to standard input, one line of JSON: {"host_key": PEM, "authorized_key":
// LINE}. Until then a connection waits. Each later line is one more key that may log in:
// {"authorized_key": LINE}. What it says on standard output, a line each: "waiting", and "login" when
// somebody has logged in for the first time. Its environment is that of every command.
//
// OpenSSH starts three programs with some twenty libraries for a connection, which under emulation
// takes longer than everything else between a request and a runner. Here a connection is a
// goroutine, and the code it runs has run before the freeze (rehearse). Nothing random outlives the
// freeze: keys come from getrandom(2) when they are needed.
package main

import (
	"bufio"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

const (
	user      = "build"
	handshake = 30 * time.Second
	// Connections that have not logged in, at most.
	strangers = 64
	// Keys, at most.
	keys = 16
	// What a command that has ended left running may keep its streams for.
	patience = time.Second
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: runner-sshd ADDRESS:PORT")
	}
	if err := rehearse(); err != nil {
		log.Fatalf("rehearsal: %v", err)
	}
	listener, err := net.Listen("tcp4", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	tell("waiting")
	told := bufio.NewReader(os.Stdin)
	hostKey, allowed, err := identity(told)
	if err != nil {
		log.Fatalf("identity: %v", err)
	}
	go learn(told, allowed)
	config := configure(hostKey, allowed)
	var first sync.Once
	serve(listener, config, func() { first.Do(func() { tell("login") }) })
}

// who is a line of what we are told.
type who struct {
	HostKey       string `json:"host_key"`
	AuthorizedKey string `json:"authorized_key"`
}

// identity waits for the line that says who we are.
func identity(told *bufio.Reader) (ssh.Signer, *allowed, error) {
	line, err := told.ReadBytes('\n')
	if err != nil {
		return nil, nil, err
	}
	var said who
	if err := json.Unmarshal(line, &said); err != nil {
		return nil, nil, err
	}
	hostKey, err := ssh.ParsePrivateKey([]byte(said.HostKey))
	if err != nil {
		return nil, nil, err
	}
	var keys allowed
	return hostKey, &keys, keys.add(said.AuthorizedKey)
}

// learn takes more keys, until nobody is there who could tell one. What is no key is passed over.
func learn(told *bufio.Reader, keys *allowed) {
	for {
		line, err := told.ReadBytes('\n')
		if err != nil {
			return
		}
		var said who
		if err = json.Unmarshal(line, &said); err == nil {
			err = keys.add(said.AuthorizedKey)
		}
		if err != nil {
			log.Print(err)
		}
	}
}

// allowed has the keys that may log in.
type allowed struct {
	lock sync.Mutex
	keys [][]byte
}

// add takes an OpenSSH public key line; one that is there already is fine.
func (a *allowed) add(line string) error {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return err
	}
	if a.has(key) {
		return nil
	}
	a.lock.Lock()
	defer a.lock.Unlock()
	if len(a.keys) == keys {
		return errors.New("there are as many keys as there can be")
	}
	a.keys = append(a.keys, key.Marshal())
	return nil
}

func (a *allowed) has(key ssh.PublicKey) bool {
	a.lock.Lock()
	defer a.lock.Unlock()
	wire, found := key.Marshal(), 0
	for _, one := range a.keys {
		found |= subtle.ConstantTimeCompare(wire, one)
	}
	return found == 1
}

// tell says a line to the agent; one that has gone need not hear it.
func tell(word string) {
	_, _ = fmt.Println(word)
}

// configure accepts those keys for one user. The algorithms are those that mayfly/build/ssh.py asks
// for, which has the measurements.
func configure(hostKey ssh.Signer, keys *allowed) *ssh.ServerConfig {
	config := &ssh.ServerConfig{
		Config: ssh.Config{
			Ciphers:      []string{"aes128-ctr", "aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"},
			MACs:         []string{"hmac-sha2-256-etm@openssh.com", "hmac-sha2-256"},
			KeyExchanges: []string{"curve25519-sha256", "curve25519-sha256@libssh.org"},
		},
		ServerVersion: "SSH-2.0-mayfly",
		PublicKeyCallback: func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if meta.User() == user && keys.has(key) {
				return nil, nil
			}
			return nil, errors.New("another user or key")
		},
	}
	config.AddHostKey(hostKey)
	return config
}

// serve answers connections until the listener is closed.
func serve(listener net.Listener, config *ssh.ServerConfig, loggedIn func()) {
	free := make(chan struct{}, strangers)
	for {
		free <- struct{}{}
		raw, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors or memory, which passes
			log.Print(err)
			time.Sleep(100 * time.Millisecond)
			<-free
			continue
		}
		go func() {
			defer raw.Close()
			_ = raw.SetDeadline(time.Now().Add(handshake))
			connection, channels, requests, err := ssh.NewServerConn(raw, config)
			<-free
			if err != nil {
				return
			}
			_ = raw.SetDeadline(time.Time{})
			loggedIn()
			go ssh.DiscardRequests(requests) // keepalives are answered; forwarding to us is refused
			for channel := range channels {
				go open(channel)
			}
			_ = connection.Wait()
		}()
	}
}

func open(channel ssh.NewChannel) {
	switch channel.ChannelType() {
	case "session":
		session(channel)
	case "direct-streamlocal@openssh.com":
		forward(channel)
	default:
		_ = channel.Reject(ssh.UnknownChannelType, "only sessions and unix sockets")
	}
}

// forward connects a channel with a unix socket (OpenSSH's PROTOCOL, 2.4).
func forward(channel ssh.NewChannel) {
	var to struct {
		Path     string
		Reserved string
		Port     uint32
	}
	if err := ssh.Unmarshal(channel.ExtraData(), &to); err != nil {
		_ = channel.Reject(ssh.ConnectionFailed, "malformed")
		return
	}
	there, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: to.Path, Net: "unix"})
	if err != nil {
		_ = channel.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	defer there.Close()
	here, requests, err := channel.Accept()
	if err != nil {
		return
	}
	defer here.Close()
	go ssh.DiscardRequests(requests)
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(here, there)
		_ = here.CloseWrite()
		close(done)
	}()
	_, _ = io.Copy(there, here)
	_ = there.CloseWrite()
	<-done
}

// size is a terminal's, as RFC 4254 has it in `pty-req` (6.2) and `window-change` (6.7).
type size struct{ Columns, Rows, Width, Height uint32 }

// terminal is what `pty-req` asks for.
type terminal struct {
	name string
	size size
}

// session runs one command, or a shell (RFC 4254, 6.5): on a terminal where one was asked for, else
// with its streams apart; a shell reads standard input then.
func session(channel ssh.NewChannel) {
	stream, requests, err := channel.Accept()
	if err != nil {
		return
	}
	defer stream.Close()
	var on *terminal
	for request := range requests {
		var command *exec.Cmd
		switch request.Type {
		case "pty-req":
			var wanted struct {
				Name                         string
				Columns, Rows, Width, Height uint32
				Modes                        string
			}
			good := ssh.Unmarshal(request.Payload, &wanted) == nil
			if good {
				extent := size{wanted.Columns, wanted.Rows, wanted.Width, wanted.Height}
				on = &terminal{wanted.Name, extent}
			}
			_ = request.Reply(good, nil)
			continue
		case "exec":
			var what struct{ Command string }
			if ssh.Unmarshal(request.Payload, &what) == nil {
				command = exec.Command("/bin/sh", "-c", what.Command)
			}
		case "shell":
			command = exec.Command("/bin/sh", "-s")
			if shell := os.Getenv("SHELL"); on != nil && shell != "" {
				command = exec.Command(shell)
			}
		}
		if command == nil {
			_ = request.Reply(false, nil)
			continue
		}
		_ = request.Reply(true, nil)
		run(stream, command, on, requests)
		return
	}
}

// run runs a command with its streams on the channel, on a terminal if there is to be one. It is
// killed with its group when the channel has gone, and so is what it leaves running.
func run(stream ssh.Channel, command *exec.Cmd, on *terminal, requests <-chan *ssh.Request) {
	command.Dir = os.Getenv("HOME")
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	command.WaitDelay = patience
	var master *os.File
	var drained func()
	var err error
	if on != nil {
		master, drained, err = onTerminal(stream, command, on)
	} else {
		err = withStreams(stream, command)
	}
	if err != nil {
		fmt.Fprintln(stream.Stderr(), err)
		status(stream, 127)
		return
	}
	// The agent, whose child we are, comes before all else in the guest; what people run does not.
	_ = syscall.Setpriority(syscall.PRIO_PGRP, command.Process.Pid, 0)
	ended := make(chan struct{})
	go func() {
		control(requests, master, command.Process.Pid, ended)
		select {
		case <-ended:
		default:
			_ = syscall.Kill(-command.Process.Pid, syscall.SIGKILL)
		}
	}()
	_ = command.Wait() // its state says all
	close(ended)
	if drained != nil {
		drained()
	}
	_ = syscall.Kill(-command.Process.Pid, syscall.SIGKILL)
	if how := command.ProcessState.Sys().(syscall.WaitStatus); how.Signaled() {
		status(stream, 128+int(how.Signal()))
	} else {
		status(stream, how.ExitStatus())
	}
}

// control answers what is asked of a command that runs, until its channel has gone: its terminal's
// size, and signals (RFC 4254, 6.9).
func control(requests <-chan *ssh.Request, master *os.File, group int, ended <-chan struct{}) {
	signals := map[string]syscall.Signal{
		"HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "QUIT": syscall.SIGQUIT,
		"TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL,
	}
	for request := range requests {
		done := false
		switch request.Type {
		case "window-change":
			var extent size
			if master != nil && ssh.Unmarshal(request.Payload, &extent) == nil {
				done = resize(master, extent) == nil
			}
		case "signal":
			var what struct{ Name string }
			if ssh.Unmarshal(request.Payload, &what) == nil && signals[what.Name] != 0 {
				select {
				case <-ended:
				default:
					done = syscall.Kill(-group, signals[what.Name]) == nil
				}
			}
		}
		if request.WantReply {
			_ = request.Reply(done, nil)
		}
	}
}

// withStreams starts a command with its streams apart.
func withStreams(stream ssh.Channel, command *exec.Cmd) error {
	input, err := command.StdinPipe()
	if err != nil {
		return err
	}
	command.Stdout, command.Stderr = stream, stream.Stderr()
	if err := command.Start(); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(input, stream)
		_ = input.Close()
	}()
	return nil
}

// onTerminal starts a command on a terminal of its own (pts(4)); what is returned besides it waits
// until the command's last words are sent. Whoever still has the terminal by then is not waited for.
func onTerminal(stream ssh.Channel, command *exec.Cmd, on *terminal) (*os.File, func(), error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	var number int
	if err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err == nil {
		number, err = unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	}
	if err == nil {
		err = resize(master, on.size)
	}
	var slave *os.File
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err == nil {
		defer slave.Close()
		command.Stdin, command.Stdout, command.Stderr = slave, slave, slave
		command.SysProcAttr.Setctty = true
		command.Env = append(os.Environ(), "TERM="+on.name)
		err = command.Start()
	}
	if err != nil {
		master.Close()
		return nil, nil, err
	}
	copied := make(chan struct{})
	go func() {
		_, _ = io.Copy(stream, master) // ends with EIO once nobody has the slave
		close(copied)
	}()
	go func() {
		_, _ = io.Copy(master, stream)
		_, _ = master.Write([]byte{4}) // the other side has no more to say: end of file (termios(3), VEOF)
	}()
	return master, func() {
		select {
		case <-copied:
		case <-time.After(patience):
		}
		master.Close()
	}, nil
}

func resize(master *os.File, to size) error {
	extent := unix.Winsize{Row: uint16(to.Rows), Col: uint16(to.Columns)}
	return unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &extent)
}

func status(stream ssh.Channel, code int) {
	_ = stream.CloseWrite()
	_, _ = stream.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{uint32(code)}))
}

// rehearse serves one connection of our own, so that what a clone's first one needs is in memory when
// the template is frozen. Its keys are never written as text, and wiped.
func rehearse() error {
	var signers [2]ssh.Signer
	for i := range signers {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		defer clear(private)
		if signers[i], err = ssh.NewSignerFromKey(private); err != nil {
			return err
		}
	}
	hostKey, key := signers[0], signers[1]
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	var keys allowed
	if err := keys.add(string(ssh.MarshalAuthorizedKey(key.PublicKey()))); err != nil {
		return err
	}
	config := configure(hostKey, &keys)
	go serve(listener, config, func() {})
	client, err := ssh.Dial("tcp4", listener.Addr().String(), &ssh.ClientConfig{
		Config:          config.Config,
		User:            user,
		Auth:            []ssh.AuthMethod{ssh.PublicKeys(key)},
		HostKeyCallback: ssh.FixedHostKey(hostKey.PublicKey()),
		Timeout:         handshake,
	})
	if err != nil {
		return err
	}
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		return err
	}
	output, err := session.Output("echo rehearsed")
	if err != nil {
		return err
	}
	if said := strings.TrimSpace(string(output)); said != "rehearsed" {
		return fmt.Errorf("a command said %q", said)
	}
	return nil
}
