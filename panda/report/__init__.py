"""What people read: panels of patches, and pages made from the folder that a run, an inference or a sweep leaves."""
