"""What a user of Windows is told; imports nothing, because modules that it lacks end the import of most others."""

NEEDS_WSL2 = "mimcl needs Linux or macOS, not Windows; install WSL2 (wsl --install) and run mimcl in it"
