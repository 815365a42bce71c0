"""What several test files share: images, sources, servers, runs, processes."""
