"""Drills that break a built target on purpose, measure what visitors lose, and judge the promises."""
