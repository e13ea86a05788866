"""From a folder of slides to tensors: tables, splits, patches, bags, loaders."""
