module example.org/go-service

go 1.24

require (
	github.com/dustin/go-humanize v1.1.0
	github.com/google/uuid v1.6.0
	github.com/julienschmidt/httprouter v1.3.0
)
