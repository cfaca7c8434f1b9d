"""What the sealed nodes fetch: packages, images and manifests, built once and served inside the lab."""
