// Loads a compose file with Docker's own loader, as `docker compose --profile PROFILE config` does, and prints what it
// comes to as JSON. `.ci/tools compose` builds it.
//
//	compose-config FILE [PROFILE]...
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "compose-config:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("no compose file is named")
	}
	options, err := cli.NewProjectOptions(args[:1], cli.WithOsEnv, cli.WithProfiles(args[1:]))
	if err != nil {
		return err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return err
	}
	json, err := project.MarshalJSON()
	if err != nil {
		return err
	}
	fmt.Println(string(json))
	return nil
}
