"""What the embedded server needs: a build of the extension, an OS user, folders of its own."""
