package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestANameIsGivenOut(t *testing.T) {
	recorder := httptest.NewRecorder()
	service(time.Now()).ServeHTTP(recorder, httptest.NewRequest(http.MethodPost, "/names/me", nil))
	if body := recorder.Body.String(); !strings.Contains(body, `"for":"me"`) {
		t.Fatalf("answered %s", body)
	}
}
