-- The databases of the two servers. Each server makes its tables itself.
CREATE DATABASE prefect OWNER medicane;
CREATE DATABASE mlflow OWNER medicane;
