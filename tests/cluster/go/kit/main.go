// Command kit makes what the test cluster needs before it starts: certificates and container images.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "kit:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: kit pki|image [flags]")
	}
	switch args[0] {
	case "pki":
		flags := flag.NewFlagSet("pki", flag.ContinueOnError)
		dir := flags.String("dir", "", "directory the files are written to")
		names := flags.String("names", "", "DNS names and addresses of the API server, separated by commas")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return writePKI(*dir, strings.Split(*names, ","))
	case "image":
		flags := flag.NewFlagSet("image", flag.ContinueOnError)
		out := flags.String("out", "", "docker-archive to write")
		tag := flags.String("tag", "", "repository:tag of the image")
		entry := flags.String("entrypoint", "", "entry point, words separated by spaces")
		files := flags.String("files", "", "PATH=SOURCE of each file, separated by commas")
		links := flags.String("links", "", "PATH=TARGET of each symbolic link, separated by commas")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return writeImage(image{
			Out: *out, Tag: *tag, Entrypoint: strings.Fields(*entry),
			Files: pairs(*files), Links: pairs(*links),
		})
	default:
		return fmt.Errorf("unknown command %q", args[0])
	}
}

// pairs splits "a=b,c=d" and keeps the order.
func pairs(text string) [][2]string {
	var out [][2]string
	for part := range strings.SplitSeq(text, ",") {
		if left, right, found := strings.Cut(part, "="); found {
			out = append(out, [2]string{left, right})
		}
	}
	return out
}
