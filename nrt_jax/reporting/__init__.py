"""From runs to numbers, tables and pictures. Reads what runs left in their workdirs; nothing here runs a model."""
