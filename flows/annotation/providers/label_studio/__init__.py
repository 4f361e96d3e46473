"""Label with Label Studio: one project per campaign, one task per image, pre-annotations to correct."""
