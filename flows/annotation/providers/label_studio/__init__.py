"""Annotators with Label Studio: one project a campaign, one task an image, pre-drawn boxes to correct."""
