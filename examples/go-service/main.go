// A web service that gives out names and tells how long it has been up.
package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"runtime"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/google/uuid"
	"github.com/julienschmidt/httprouter"
)

func service(started time.Time) http.Handler {
	router := httprouter.New()
	router.GET("/", func(w http.ResponseWriter, _ *http.Request, _ httprouter.Params) {
		fmt.Fprintf(w, "Hello from a Mayfly build, %s, up since %s.\n",
			runtime.Version(), humanize.Time(started))
	})
	router.GET("/healthz", func(w http.ResponseWriter, _ *http.Request, _ httprouter.Params) {
		answer(w, map[string]string{"status": "ok"})
	})
	router.POST("/names/:for", func(w http.ResponseWriter, _ *http.Request, p httprouter.Params) {
		answer(w, map[string]string{"for": p.ByName("for"), "name": uuid.NewString()})
	})
	return router
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(value); err != nil {
		slog.Warn("answering", "fault", err)
	}
}

func main() {
	port := os.Getenv("PORT")
	if port == "" {
		port = "8000"
	}
	slog.Info("listening", "port", port)
	server := http.Server{
		Addr:              ":" + port,
		Handler:           service(time.Now()),
		ReadHeaderTimeout: 10 * time.Second,
	}
	if err := server.ListenAndServe(); err != nil {
		slog.Error("ended", "fault", err)
		os.Exit(1)
	}
}
