// The SSH server of a runner: one user, one key, commands and unix sockets, nothing else.
//
//	runner-sshd ADDRESS:PORT
//
// It is started before a template is frozen, as the user that it serves, and waits; a clone's agent
// then writes who it is to standard input, one line of JSON: {"host_key": PEM, "authorized_key":
// LINE}. Until then a connection waits. What it says on standard output, a line each: "waiting", and
// "login" when somebody has logged in for the first time. Its environment is that of every command.
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
)

const (
	user      = "build"
	handshake = 30 * time.Second
	// Connections that have not logged in, at most.
	strangers = 64
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
	config, err := identity(os.Stdin)
	if err != nil {
		log.Fatalf("identity: %v", err)
	}
	var first sync.Once
	serve(listener, config, func() { first.Do(func() { tell("login") }) })
}

// identity waits for the line that says who we are.
func identity(from io.Reader) (*ssh.ServerConfig, error) {
	line, err := bufio.NewReader(from).ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	var who struct {
		HostKey       string `json:"host_key"`
		AuthorizedKey string `json:"authorized_key"`
	}
	if err := json.Unmarshal(line, &who); err != nil {
		return nil, err
	}
	hostKey, err := ssh.ParsePrivateKey([]byte(who.HostKey))
	if err != nil {
		return nil, err
	}
	authorized, _, _, _, err := ssh.ParseAuthorizedKey([]byte(who.AuthorizedKey))
	if err != nil {
		return nil, err
	}
	return configure(hostKey, authorized), nil
}

// tell says a line to the agent; one that has gone need not hear it.
func tell(word string) {
	_, _ = fmt.Println(word)
}

// configure accepts one key for one user. The algorithms are those that mayfly/build/ssh.py asks
// for, which has the measurements.
func configure(hostKey ssh.Signer, authorized ssh.PublicKey) *ssh.ServerConfig {
	config := &ssh.ServerConfig{
		Config: ssh.Config{
			Ciphers:      []string{"aes128-ctr", "aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"},
			MACs:         []string{"hmac-sha2-256-etm@openssh.com", "hmac-sha2-256"},
			KeyExchanges: []string{"curve25519-sha256", "curve25519-sha256@libssh.org"},
		},
		ServerVersion: "SSH-2.0-mayfly",
		PublicKeyCallback: func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if meta.User() == user && subtle.ConstantTimeCompare(key.Marshal(), authorized.Marshal()) == 1 {
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

// session runs one command, or a shell that reads standard input (RFC 4254, 6.5).
func session(channel ssh.NewChannel) {
	stream, requests, err := channel.Accept()
	if err != nil {
		return
	}
	defer stream.Close()
	for request := range requests {
		var argv []string
		switch request.Type {
		case "exec":
			var what struct{ Command string }
			if ssh.Unmarshal(request.Payload, &what) == nil {
				argv = []string{"-c", what.Command}
			}
		case "shell":
			argv = []string{"-s"}
		}
		if argv == nil {
			_ = request.Reply(false, nil)
			continue
		}
		_ = request.Reply(true, nil)
		gone := make(chan struct{})
		go func() {
			ssh.DiscardRequests(requests)
			close(gone)
		}()
		run(stream, argv, gone)
		return
	}
}

// run runs the shell with its streams on the channel, and kills it with its group when the
// channel has gone.
func run(stream ssh.Channel, argv []string, gone <-chan struct{}) {
	command := exec.Command("/bin/sh", argv...)
	command.Dir = os.Getenv("HOME")
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	input, err := command.StdinPipe()
	if err == nil {
		command.Stdout, command.Stderr = stream, stream.Stderr()
		err = command.Start()
	}
	if err != nil {
		fmt.Fprintln(stream.Stderr(), err)
		status(stream, 127)
		return
	}
	go func() {
		_, _ = io.Copy(input, stream)
		_ = input.Close()
	}()
	ended := make(chan struct{})
	go func() {
		select {
		case <-gone:
			_ = syscall.Kill(-command.Process.Pid, syscall.SIGKILL)
		case <-ended:
		}
	}()
	err = command.Wait()
	close(ended)
	var exit *exec.ExitError
	switch {
	case err == nil:
		status(stream, 0)
	case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled():
		status(stream, 128+int(exit.Sys().(syscall.WaitStatus).Signal()))
	case errors.As(err, &exit):
		status(stream, exit.ExitCode())
	default:
		status(stream, 255)
	}
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
	config := configure(hostKey, key.PublicKey())
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
