// signed prints, as JSON, what a Woodpecker server's extensions send: it is the server's own code that
// makes and signs the requests, and a server of ours that writes down what it gets.
//
//	signed               with a key of its own
//	signed KEY           with that key: a file, PKCS 8 as PEM
//	signed KEY ADDRESS   sends them there instead, and prints what the server's code makes of the answers
//
// It is no part of Mayfly's build. ../test_real.py runs it in a checkout of
// github.com/woodpecker-ci/woodpecker. To make ../signed.json anew, put this file into a folder of
// one, as cmd/signed/main.go, and say `go run ./cmd/signed > signed.json` there.
package main

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"

	"go.woodpecker-ci.org/woodpecker/v3/server/model"
	"go.woodpecker-ci.org/woodpecker/v3/server/services/registry"
	"go.woodpecker-ci.org/woodpecker/v3/server/services/secret"
	"go.woodpecker-ci.org/woodpecker/v3/server/services/utils"
)

type sent struct {
	Target  string              `json:"target"`
	Headers map[string][]string `json:"headers"`
	Body    string              `json:"body"`
}

func main() {
	public, private := key()
	der, err := x509.MarshalPKIXPublicKey(public)
	check(err)
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	out := map[string]any{"public_key": text}
	var got []sent
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = append(got, sent{r.RequestURI, r.Header, base64.StdEncoding.EncodeToString(body)})
		_, _ = w.Write([]byte("{}"))
	}))
	defer server.Close()
	client, err := utils.NewHTTPClient(private, "loopback")
	check(err)
	repo := &model.Repo{ID: 5, ForgeID: 1, ForgeRemoteID: "17", Owner: "Team", Name: "App",
		FullName: "Team/App", Branch: "main", Visibility: model.VisibilityPrivate, IsActive: true}
	pipeline := &model.Pipeline{ID: 99, Number: 12, Event: model.EventPull, Branch: "main",
		Ref: "refs/pull/7/head", Refspec: "feature:main", Commit: "2fff90f8d288a4640e90f05049fe30e61a14fd50",
		Status: model.StatusPending, Author: "someone", FromFork: true, Message: "naïve <change> & more\n",
		ChangedFiles: []string{"a.txt"}}
	target := server.URL + "/v1/woodpecker/"
	if len(os.Args) > 2 {
		target = os.Args[2] + "/v1/woodpecker/"
	}
	var secrets []*model.Secret
	var logins []*model.Registry
	push := &model.Pipeline{ID: 98, Number: 11, Event: model.EventPush, Branch: "main",
		Ref: "refs/heads/main", Commit: "714a629c0b401fdce83e847fc9589983fc6f46bc",
		Status: model.StatusPending, Author: "someone", ChangedFiles: []string{"a.txt"}}
	for _, each := range []*model.Pipeline{pipeline, push} {
		some, err := secret.NewHTTP(target+"secrets", client, false).SecretListPipeline(context.Background(), repo, each, nil)
		check(err)
		more, err := registry.NewHTTP(target+"registries", client, false).RegistryListPipeline(context.Background(), repo, each, nil)
		check(err)
		secrets, logins = append(secrets, some...), append(logins, more...)
	}
	if len(os.Args) > 2 {
		out = map[string]any{"secrets": secrets, "registries": logins}
	} else {
		out["requests"] = got
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	check(encoder.Encode(out))
}

// key is the one that the command line names, or a new one.
func key() (ed25519.PublicKey, ed25519.PrivateKey) {
	if len(os.Args) < 2 {
		public, private, err := ed25519.GenerateKey(nil)
		check(err)
		return public, private
	}
	text, err := os.ReadFile(os.Args[1])
	check(err)
	block, _ := pem.Decode(text)
	found, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	check(err)
	private := found.(ed25519.PrivateKey)
	return private.Public().(ed25519.PublicKey), private
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
