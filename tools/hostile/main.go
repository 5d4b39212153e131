// Command hostile is a buildkitd that was replaced: it takes a build only to ask the client for
// credentials, with BuildKit's own libraries. For tests; it is in no image.
//
//	hostile SOCKET < QUESTIONS
//
// QUESTIONS is a JSON list of {"host", "realm", "service", "scopes"}. When a build comes, each is
// asked in every way that BuildKit's session knows, the answers go to standard output as one JSON
// list, and the build fails.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"net"
	"os"

	controlapi "github.com/moby/buildkit/api/services/control"
	apitypes "github.com/moby/buildkit/api/types"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/grpchijack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

type question struct {
	Host    string   `json:"host"`
	Realm   string   `json:"realm"`
	Service string   `json:"service"`
	Scopes  []string `json:"scopes"`
}

type answer struct {
	Host     string `json:"host"`
	Username string `json:"username"`
	Secret   string `json:"secret"`
	Token    string `json:"token"`
	// What the client said instead.
	CredentialsError string `json:"credentials_error"`
	TokenError       string `json:"token_error"`
}

type buildkitd struct {
	controlapi.UnimplementedControlServer
	sessions  *session.Manager
	questions []question
}

func (b *buildkitd) ListWorkers(context.Context, *controlapi.ListWorkersRequest) (*controlapi.ListWorkersResponse, error) {
	return &controlapi.ListWorkersResponse{Record: []*apitypes.WorkerRecord{{ID: "hostile"}}}, nil
}

func (b *buildkitd) Info(context.Context, *controlapi.InfoRequest) (*controlapi.InfoResponse, error) {
	return &controlapi.InfoResponse{BuildkitVersion: &apitypes.BuildkitVersion{Version: "v0.34.2"}}, nil
}

func (b *buildkitd) Session(stream controlapi.Control_SessionServer) error {
	conn, closed, opts := grpchijack.Hijack(stream)
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(stream.Context())
	go func() {
		<-closed
		cancel(errors.New("closed"))
	}()
	return b.sessions.HandleConn(ctx, conn, opts)
}

// frontend answers what buildx asks of it before and after every build.
type frontend struct {
	gateway.UnimplementedLLBBridgeServer
}

func (frontend) Ping(context.Context, *gateway.PingRequest) (*gateway.PongResponse, error) {
	return &gateway.PongResponse{Workers: []*apitypes.WorkerRecord{{ID: "hostile"}}}, nil
}

func (frontend) Return(context.Context, *gateway.ReturnRequest) (*gateway.ReturnResponse, error) {
	return &gateway.ReturnResponse{}, nil
}

func (b *buildkitd) Status(_ *controlapi.StatusRequest, stream controlapi.Control_StatusServer) error {
	<-stream.Context().Done()
	return nil
}

func (b *buildkitd) Solve(ctx context.Context, request *controlapi.SolveRequest) (*controlapi.SolveResponse, error) {
	caller, err := b.sessions.Get(ctx, request.Session, false)
	if err != nil {
		return nil, err
	}
	if !caller.Supports(session.MethodURL(auth.Auth_ServiceDesc.ServiceName, "fetchtoken")) {
		return &controlapi.SolveResponse{}, nil // buildx looks what BuildKit can do, first
	}
	client := auth.NewAuthClient(caller.Conn())
	answers := []answer{}
	for _, q := range b.questions {
		answers = append(answers, ask(ctx, client, q))
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		return nil, err
	}
	return nil, status.Error(codes.Aborted, "everything has been asked")
}

func ask(ctx context.Context, client auth.AuthClient, q question) answer {
	found := answer{Host: q.Host}
	// What BuildKit does first; an answer decides whether it asks for a token or for the login.
	_, _ = client.GetTokenAuthority(ctx, &auth.GetTokenAuthorityRequest{Host: q.Host, Salt: []byte("salt")})
	login, err := client.Credentials(ctx, &auth.CredentialsRequest{Host: q.Host})
	if err != nil {
		found.CredentialsError = err.Error()
	} else {
		found.Username, found.Secret = login.Username, login.Secret
	}
	token, err := client.FetchToken(ctx, &auth.FetchTokenRequest{
		ClientID: "hostile", Host: q.Host, Realm: q.Realm, Service: q.Service, Scopes: q.Scopes,
	})
	if err != nil {
		found.TokenError = err.Error()
	} else {
		found.Token = token.Token
	}
	return found
}

func run() error {
	var questions []question
	if err := json.NewDecoder(os.Stdin).Decode(&questions); err != nil {
		return err
	}
	sessions, err := session.NewManager()
	if err != nil {
		return err
	}
	listener, err := net.Listen("unix", os.Args[1])
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	controlapi.RegisterControlServer(server, &buildkitd{sessions: sessions, questions: questions})
	gateway.RegisterLLBBridgeServer(server, frontend{})
	return server.Serve(listener)
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
